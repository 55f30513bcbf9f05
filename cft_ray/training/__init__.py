"""DeepSpeed ZeRO-3 training of causal language models, in one process, under `torchrun` or under any launcher that sets
the usual ``RANK``, ``WORLD_SIZE`` … variables. Knows nothing of Ray.

A `job.Job` says what to train; `loop.train` trains it on every rank and returns the same `loop.Summary` on each.
"""
