"""A stage kind that takes a while and can be stopped on the way; with leases that expire soon, in the process that runs it."""

import os
import time
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from pyarrow import parquet as pq

from cft_ray.artifacts import lease
from cft_ray.plan.specs import SPECS, Spec, locator
from cft_ray.stages.context import StageContext

lease.BEAT, lease.EXPIRY = 0.2, 3.0


class PausableSpec(Spec):
    kind: ClassVar[str] = "pausable"
    module: ClassVar[str | None] = "pausable"
    name: str
    seconds: float = locator("how long it takes", 0.0)
    log: str = locator("file that gets a line for each run")


SPECS["pausable"] = PausableSpec


def run(context: StageContext) -> dict:
    spec = context.stage.spec
    assert isinstance(spec, PausableSpec)
    with Path(spec.log).open("a") as log:
        log.write(f"{spec.name} {os.getpid()} begin\n")
    for _ in range(round(spec.seconds / 0.05)):
        time.sleep(0.05)
    (context.output / "by.txt").write_text(str(os.getpid()))
    (context.output / "tables").mkdir()
    steps = [{"step": step, "loss": 2.0 / step} for step in range(1, 4)]
    pq.write_table(pa.Table.from_pylist(steps), context.output / "tables" / "steps.parquet")
    with Path(spec.log).open("a") as log:
        log.write(f"{spec.name} {os.getpid()} end\n")
    return {"pid": os.getpid()}
