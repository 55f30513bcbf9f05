"""Whole values of parameters, whether DeepSpeed has partitioned them or not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def gathered(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The parameters are whole on every rank inside the block, and are not to be changed there; every rank enters it.

    DeepSpeed, whose import takes over a second, is not asked where it has partitioned nothing.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(parameters)):
        yield
