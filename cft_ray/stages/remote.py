"""Work of a stage with the stage's CPUs and GPUs: in a Ray task, or the actor that keeps its model; without Ray, in this
process.

Whoever calls makes the remote function once, at module level: to Ray each new one is another sort of task, with a process of
its own.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayTaskError

from cft_ray.stages.context import StageContext

T = TypeVar("T")

_WAITING = 4
"""parts that a streaming task may be ahead of whoever takes them"""


def call(work: Callable[..., T], task: Any, context: StageContext, *more: Any) -> T:
    """``work(context, *more)``, where Ray runs in the stage's host or else as ``task``, which is its remote function.

    Raises:
        Exception: what the work raised, as it was.
    """
    if not ray.is_initialized():
        return work(context, *more)
    if context.host is not None:
        return cast(T, _got(ray.get_actor(context.host).run.remote(work, context, *more)))
    return cast(T, _got(task.options(**_options(context)).remote(context, *more)))


def stream(work: Callable[[StageContext], Iterator[T]], task: Any, context: StageContext) -> Iterator[T]:
    """As `call` for a generator: its parts come one after the other, and only a few wait in the object store."""
    if not ray.is_initialized():
        yield from work(context)
        return
    options = {**_options(context), "num_returns": "streaming", "_generator_backpressure_num_objects": _WAITING}
    for part in task.options(**options).remote(context):
        yield _got(part)


def _options(context: StageContext) -> dict[str, Any]:
    needs = context.stage.resources
    # A strategy by name, so that the task does not land in the placement group of the driver that starts it. Trying
    # again is the run's business, which counts attempts.
    return {
        "num_cpus": needs.cpus,
        "num_gpus": needs.gpus,
        "max_retries": 0,
        "scheduling_strategy": "DEFAULT",
        "name": context.stage.kind,
    }


def _got(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise
