"""Work of a stage with the stage's CPUs and GPUs: in a Ray task, or the actor that keeps its model; without Ray, in this
process.

Ray keeps the process of a task that had no GPU for the next one, with what it has imported, and gives it to whatever asks for
the same environment: a new trial's actor would take the process of a training and never train. So work has an environment of its
own, and so has work that asks a vLLM engine, whose processes keep their engine (`cft_ray.generation.engine`).
"""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayTaskError

from cft_ray.generation.settings import environment, prepare_environment
from cft_ray.machine import devices_for
from cft_ray.stages.context import StageContext

T = TypeVar("T")

PROCESS = "CFT_RAY_PROCESS"
"""environment variable that tells processes for stages' work from those that Ray starts for itself; nothing reads it"""
_WAITING = 4
"""parts that a streaming task may be ahead of whoever takes them"""


def call(work: Callable[[StageContext], T], context: StageContext, *, engine: bool = False) -> T:
    """``work(context)``, where Ray runs in the stage's host or else in a task.

    Args:
        work: a function of a module, or a `functools.partial` of one.
        context: of the stage.
        engine: it asks a vLLM engine.

    Raises:
        Exception: what the work raised, as it was.
    """
    if not ray.is_initialized():
        return work(context)
    if context.host is not None:
        return cast(T, _got(ray.get_actor(context.host).run.remote(work, context)))
    return cast(T, _got(_RUN.options(**_options(context, engine)).remote(work, context)))


def stream(work: Callable[[StageContext], Iterator[T]], context: StageContext, *, engine: bool = False) -> Iterator[T]:
    """As `call` for a generator: its parts come one after the other, and only a few wait in the object store."""
    if not ray.is_initialized():
        yield from work(context)
        return
    streaming: dict[str, Any] = {"num_returns": "streaming", "_generator_backpressure_num_objects": _WAITING}
    parts: Any
    if context.host is not None:
        parts = ray.get_actor(context.host).stream.options(**streaming).remote(work, context)
    else:
        parts = _STREAM.options(**_options(context, engine), **streaming).remote(work, context)
    for part in parts:
        yield _got(part)


IMPORTS = {
    "training": ("cft_ray.training.loop", "cft_ray.training.model"),
    "engine": ("cft_ray.evaluation.harness", "cft_ray.evaluation.vllm_model"),
}
"""sort of process -> modules that take it seconds to import"""


def warm_up(sorts: Iterable[str]) -> None:
    """Have processes import what their later stages need, one process after the other, while no stage needs them.

    On one machine without GPUs; on GPUs a host imports, and of several machines none is known to be asked first. To be called
    where stages run: Ray gives a task the environment of what starts it as well, and Tune's trials have one of their own, so a
    process that the driver itself has started would be given to no stage.

    Args:
        sorts: keys of `IMPORTS`, the one that is needed first in front.
    """
    before: Any = None
    for sort in sorts:
        variables = _variables(0, engine=sort == "engine")
        task = _IMPORTS.options(num_cpus=0, max_retries=0, name=f"imports for {sort}", runtime_env={"env_vars": variables})
        before = task.remote(sort, before)


def _import(sort: str, before: object) -> None:
    if sort == "engine":
        prepare_environment()
    for module in IMPORTS[sort]:
        import_module(module)


def _run(work: Callable[[StageContext], T], context: StageContext) -> T:
    context.progress()  # the work has its CPUs and GPUs, and begins
    return work(context)


def _stream(work: Callable[[StageContext], Iterator[T]], context: StageContext) -> Iterator[T]:
    context.progress()
    yield from work(context)


# Made once: to Ray each new remote function is another sort of task.
_RUN = ray.remote(_run)
_STREAM = ray.remote(_stream)
_IMPORTS = ray.remote(_import)


def _options(context: StageContext, engine: bool) -> dict[str, Any]:
    needs = context.stage.resources
    # A strategy by name, so that the task does not land in the placement group of the driver that starts it. Trying
    # again is the run's business, which counts attempts.
    return {
        "num_cpus": needs.cpus,
        "num_gpus": needs.gpus,
        "max_retries": 0,
        "scheduling_strategy": "DEFAULT",
        "name": context.stage.kind,
        "runtime_env": {"env_vars": _variables(needs.gpus, engine=engine)},
    }


def _variables(gpus: float, *, engine: bool) -> dict[str, str]:
    return (environment() if engine else {PROCESS: "work"}) | devices_for(gpus)


def _got(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise
