"""A stage kind from outside the package, whose every run leaves a line in a file, so that runs can be counted."""

import os
import time
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from pyarrow import parquet as pq

from cft_ray.artifacts import lease
from cft_ray.errors import UserError
from cft_ray.plan.specs import SPECS, Spec, locator
from cft_ray.stages.context import StageContext
from cft_ray.storage.root import Storage

HASTE = "TOYSTAGE_EXPIRY"
"""environment variable: seconds after which a lease expires in every process that imports this; for tests of expiry"""
if expiry := os.environ.get(HASTE):
    lease.BEAT, lease.EXPIRY = float(expiry) / 15, float(expiry)


class ToySpec(Spec):
    kind: ClassVar[str] = "toystage"
    module: ClassVar[str | None] = "toystage"
    name: str
    rows: int = 3
    fails: str | None = locator("how it fails, if it does")
    seconds: float = locator("how long it takes", 0.0)
    checkpoints: int = locator("how often it writes a checkpoint", 0)
    log: str = locator("file that gets a line for each run")


SPECS["toystage"] = ToySpec


def run(context: StageContext) -> dict:
    spec = context.stage.spec
    assert isinstance(spec, ToySpec)
    with Path(spec.log).open("a") as log:
        log.write(f"{spec.name} {os.getpid()} begin\n")
    if spec.fails == "user":
        raise UserError("the file has no rows", where="x.jsonl", fix="give it some")
    if spec.fails == "bug":
        raise ZeroDivisionError("planted")
    marker = Path(f"{spec.log}.{spec.name}.died")
    if spec.fails == "dies once" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
    context.report("steps", [{"step": 1, "loss": 2.0}], 1)
    for number in range(spec.checkpoints):
        context.prove()
        Storage(context.checkpoints).write(f"step-{number}", data=b"half")
    end = time.monotonic() + spec.seconds
    while time.monotonic() < end:
        context.progress(done=int(100 * (1 - (end - time.monotonic()) / spec.seconds)), total=100, unit="%", loss=1.5)
        time.sleep(0.05)
    total = spec.rows + sum(context.summary(role)["total"] for role in context.stage.inputs)
    for role in context.stage.inputs:
        assert (context.input(role) / "data.txt").read_text()
    (context.output / "data.txt").write_text(spec.name * 3)
    (context.output / "tables").mkdir()
    steps = [{"step": step, "loss": 2.0 / step} for step in range(1, spec.rows + 1)]
    pq.write_table(pa.Table.from_pylist(steps), context.output / "tables" / "steps.parquet")
    with Path(spec.log).open("a") as log:
        log.write(f"{spec.name} {os.getpid()} end\n")
    return {"total": total, "pid": os.getpid()}
