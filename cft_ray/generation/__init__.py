"""Text out of models: vLLM's settings, one engine in the process, and batched generation on Ray Data."""
