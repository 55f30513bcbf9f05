"""Processes that keep a model on their GPUs from one stage to the next.

Ray ends the process of a task that had GPUs, because nothing else gives their memory back for certain; the next stage would
load the model again. A host is an actor instead: stages follow each other in it as the schedule says, and it ends when it is
released. On CPUs there is no need of one: Ray keeps the tasks' processes, and the model stays in them
(`cft_ray.generation.engine`).

The driver owns the actors, so none outlives the run.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from cft_ray.plan.stage import Resources
from cft_ray.stages.context import StageContext

T = TypeVar("T")


class Host:
    """The actor: does one stage's work after the other."""

    def run(self, work: Callable[[StageContext], T], context: StageContext) -> T:
        """``work(context)``."""
        return work(context)

    def stream(self, work: Callable[[StageContext], Iterator[T]], context: StageContext) -> Iterator[T]:
        """The parts of ``work(context)``."""
        yield from work(context)


class Hosts:
    """The hosts of a run, held by its driver.

    Args:
        run: unique name of the run; the actors' names begin with it.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._actors: dict[str, Any] = {}

    def named(self, host: str, needs: Resources) -> str | None:
        """The name of the actor of a host, which is started if there is none; None: no GPU, no actor."""
        if needs.gpus <= 0:
            return None
        name = f"{self._run}-{host}"
        if host not in self._actors:
            # Started again where it dies, for the stage that is then tried again.
            options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_restarts": -1}
            self._actors[host] = ray.remote(Host).options(name=name, scheduling_strategy="DEFAULT", **options).remote()
        return name

    def release(self, hosts: Iterable[str]) -> None:
        """End their processes, which gives the GPUs back."""
        for host in hosts:
            if actor := self._actors.pop(host, None):
                ray.kill(actor)

    def close(self) -> None:
        """Release all."""
        self.release(list(self._actors))
