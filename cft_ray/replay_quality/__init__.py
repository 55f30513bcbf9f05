"""What generated replay is like, beside the original answers to the same prompts: see `docs/insight.md`."""
