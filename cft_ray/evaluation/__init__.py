"""Scores of models: lm-evaluation-harness driven in the process, with vLLM or transformers behind it, and our own tasks."""
