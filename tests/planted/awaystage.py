"""A stage whose work runs in a task with the stage's CPUs, wherever those are, and does there what the test says."""

import os
import time
from pathlib import Path
from typing import ClassVar

import ray

from cft_ray.plan.specs import SPECS, Spec, locator
from cft_ray.stages import remote
from cft_ray.stages.context import StageContext


class AwaySpec(Spec):
    kind: ClassVar[str] = "awaystage"
    module: ClassVar[str | None] = "awaystage"
    name: str
    seconds: float = locator("how long it works, telling of it", 0.0)
    still: int = locator("times that it stands still at first", 0)
    log: str = locator("file that gets a line for each run")


SPECS["awaystage"] = AwaySpec


def run(context: StageContext) -> dict:
    return remote.call(work, context)


def work(context: StageContext) -> dict:
    spec = context.stage.spec
    assert isinstance(spec, AwaySpec)
    begun = Path(spec.log).read_text().count("begin") if Path(spec.log).exists() else 0
    with Path(spec.log).open("a") as log:
        log.write(f"{spec.name} {os.getpid()} {ray.get_runtime_context().get_node_id()} begin\n")
    if begun < spec.still:
        time.sleep(3600)
    end = time.monotonic() + spec.seconds
    while time.monotonic() < end:
        context.progress(note=f"{end - time.monotonic():.1f} s left")
        time.sleep(0.2)
    (context.output / "data.txt").write_text("done")
    with Path(spec.log).open("a") as log:
        log.write(f"{spec.name} {os.getpid()} {ray.get_runtime_context().get_node_id()} end\n")
    return {"begun": begun + 1}
