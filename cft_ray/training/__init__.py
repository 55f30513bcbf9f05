"""Training of causal language models, in one process, under `torchrun` or under any launcher that sets
the usual ``RANK``, ``WORLD_SIZE`` … variables. Knows nothing of Ray.

A `job.Job` says what to train; `loop.train` trains it on every rank and returns the same `loop.Summary` on each.

Importing this package imports transformers, and `zero` imports DeepSpeed, with the packages hidden that they would import in
case somebody wants them: nothing here does, and they are half of a worker's start-up time. What it costs: transformers'
assisted generation by confidence is not available in a process that trains.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("mlflow", "sklearn", "wandb", "comet_ml")


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Make imports of packages fail that have not been imported yet."""
    absent = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type] - None is how an import is made to fail
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]


with hidden(*UNUSED):
    import transformers.generation
    import transformers.models.auto.modeling_auto  # noqa: F401
