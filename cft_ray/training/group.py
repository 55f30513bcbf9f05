"""The processes of one training: those that a launcher has started, or this one alone.

A process alone has a group too, of one rank, so that the code of a training is the same. That group is made from an object
in memory, and it is left as the training ends: no variable of the environment and no process group stays for whoever uses
the process next.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from cft_ray.errors import StageFailed, UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""a collective that waits longer for another rank fails"""


def device() -> torch.device:
    """This rank's device."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def is_first_of_machine() -> bool:
    """Whether this is the rank that prepares files for all ranks of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def joined() -> Iterator[tuple[int, int]]:
    """Be in the process group of this training inside the block.

    The group is the one that exists in this process, or the one that the launcher describes in the environment (``RANK``,
    ``WORLD_SIZE``, ``MASTER_ADDR`` …), or else one of this process alone. One that exists already stays: it belongs to others
    (another training around this one, or vLLM's engine of one process).

    Yields:
        (rank, ranks).
    """
    if distributed.is_initialized():
        yield distributed.get_rank(), distributed.get_world_size()
        return
    if device().type == "cuda":
        torch.cuda.set_device(device())
    backend = "nccl" if device().type == "cuda" else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group(backend, timeout=TIMEOUT)
    else:
        store = distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]  # documented, and missing in __all__
        distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=TIMEOUT)
    try:
        yield distributed.get_rank(), distributed.get_world_size()
    finally:
        distributed.destroy_process_group()


def first_problem(problem: Exception | None) -> Exception | None:
    """The problem of the lowest rank that has one, the same on every rank; every rank calls it."""
    problems: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(problems, problem)
    return next((each for each in problems if each is not None), None)


def together(work: Callable[[], T]) -> T:
    """Do something on every rank; an error that the user can mend, on any of them, is raised on all.

    Raises:
        UserError, StageFailed: of the first rank that has one.
    """
    problem: Exception | None = None
    result: Any = None
    try:
        result = work()
    except (UserError, StageFailed) as error:
        problem = error
    if found := first_problem(problem):
        raise found
    return result


def from_first(work: Callable[[], T]) -> T:
    """Do something on rank 0 and tell all ranks the result, or the error that the user can mend."""
    outcome: list[Any] = [together(lambda: work() if distributed.get_rank() == 0 else None)]
    distributed.broadcast_object_list(outcome, src=0)
    return outcome[0]
