"""Training a model: `cft_ray.training`, in one process or under Ray Train.

One worker trains in a process with the stage's CPUs and GPUs (`cft_ray.stages.remote`), which Ray keeps on CPUs: the next
training finds everything imported. Several workers are started by Ray Train (`cft_ray.stages.ray_train`). The workers,
wherever they run, fetch the model and the other inputs from the artifact store, train, and rank 0 reports steps. What a
restart continues from is our own checkpoint under ``context.checkpoints``, so it serves a dead worker and a dead driver
alike, and any number of workers.
"""

import logging
import shutil
import threading
import traceback
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cft_ray.data.accounts import KEY
from cft_ray.errors import StageFailed, UserError
from cft_ray.plan.specs import FinetuneSpec
from cft_ray.stages import remote
from cft_ray.stages.context import StageContext
from cft_ray.storage.local import remove_local
from cft_ray.storage.root import Storage
from cft_ray.strategies import Strategy, load

REPORT_SECONDS = 1.0
"""steps are sent to the tables this often"""


def run(context: StageContext) -> dict[str, Any]:
    """Train; see `docs/design.md` for files and outputs.

    Raises:
        UserError: rows, model or settings that cannot be trained with.
        StageFailed: the training diverged, or several workers died more than `ray_train.RESTARTS` times.
        RayError: the process of a training of one worker died; the run tries it again.
    """
    if context.stage.resources.workers == 1:
        home = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
        outputs, away = remote.call(partial(alone, home=home), context)
    else:
        outputs, away = _in_group(context)
    if away:
        Storage(_brought(context)).mirror(context.output)
    return outputs


def _in_group(context: StageContext) -> tuple[dict[str, Any], bool]:
    from cft_ray.stages import ray_train

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    told = {
        "context": context,
        "rows": [ray.put(_rows(context))],  # in a list: a bare reference would be resolved into every worker
        "home": ray.get_runtime_context().get_node_id(),
    }
    return ray_train.run(
        _worker,
        told,
        context.stage.resources,
        name=f"{context.stage.fingerprint[:16]}-{context.attempt}",
        storage=f"{context.checkpoints}/ray",
    )


def _worker(told: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """One of several workers; what it raises ends the group."""
    from torch import distributed

    from cft_ray.training import group

    context: StageContext = told["context"]
    with group.joined():
        context.progress()  # the group has its machines, and begins
        problem: Exception | None = None
        if group.is_first_of_machine():  # fetches into this machine's cache; the other ranks find it there
            try:
                _prepare(context, ray.get(told["rows"][0]))
            except Exception as raised:  # noqa: BLE001 - raised by all below, so that none waits for the others
                problem = raised
        if problem := group.first_problem(problem):
            raise problem
        finished = _train(context, told["home"])
        distributed.barrier()
        if group.is_first_of_machine():
            remove_local(context.scratch)
    return finished


def alone(context: StageContext, home: str | None) -> tuple[dict[str, Any], bool]:
    """The only worker; the process is left as it was found."""
    _prepare(context, _rows(context))
    finished = _train(context, home)
    remove_local(context.scratch)
    return finished


def _train(context: StageContext, home: str | None) -> tuple[dict[str, Any], bool]:
    """Train on this rank, whose files are prepared.

    Args:
        context: of the stage.
        home: node whose local folder `context.output` is; None: this one.

    Returns:
        The stage's outputs, and whether the files are not in ``context.output`` but in its checkpoints (`_brought`).
    """
    import torch

    from cft_ray.training.loop import train

    away = home is not None and ray.get_runtime_context().get_node_id() != home
    output = context.scratch / "output" if away else context.output
    leader = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    live = _LiveSteps(context) if leader else None
    threads = torch.get_num_threads()
    if context.stage.resources.gpus == 0:
        torch.set_num_threads(max(1, int(context.stage.resources.cpus)))
    try:
        summary = train(_job(context, output), live.add if live else None, context.prove)
    except Exception as error:
        if not isinstance(error, UserError | StageFailed):
            error.add_note("in the training process:\n" + traceback.format_exc())  # which does not travel with it
        raise
    finally:
        torch.set_num_threads(threads)
        if live:
            live.close()
    if leader and away:
        context.prove()
        Storage(_brought(context)).fill(output)
        shutil.rmtree(output)
    spec = context.stage.spec
    assert isinstance(spec, FinetuneSpec)
    outputs = {
        "steps": summary.steps,
        "tokens": summary.tokens,
        "samples": summary.samples,
        "rows": summary.counts.used,
        KEY: summary.counts.account(spec.training).model_dump(),
        "loss_first": summary.loss_first,
        "loss_last": summary.loss_last,
        "trainable_fraction": summary.facts.get("trainable_fraction", summary.trainable_fraction),
        "frozen_fraction": summary.facts.get("frozen_fraction", 1 - summary.trainable_fraction),
        "strategy": summary.facts,
        "notes": list(summary.notes),
    }
    return outputs, away


def _rows(context: StageContext) -> pa.Table:
    """The rows to train on, with what the strategy changes in them."""
    spec = context.stage.spec
    assert isinstance(spec, FinetuneSpec)
    strategy = load(spec.strategy) if spec.strategy else Strategy()
    rows = pq.read_table(context.input("data") / "rows.parquet")
    mixed = strategy.rows(rows, {role: context.input(role) for role in context.stage.inputs}, spec.seed)
    kept = (*rows.column_names, "finish_reason")  # which says of a replayed answer whether it was cut
    return mixed.select([name for name in kept if name in mixed.column_names])


def _initial(context: StageContext) -> Path:
    return context.scratch / "initial"


def _training_rows(context: StageContext) -> Path:
    return context.scratch / "rows.parquet"


def _prepare(context: StageContext, rows: pa.Table) -> None:
    """What the ranks of this machine read: rows, and a model initialised here if the spec asks for one."""
    spec = context.stage.spec
    assert isinstance(spec, FinetuneSpec)
    pq.write_table(rows, _training_rows(context))
    if spec.scratch is not None:
        from cft_ray.training import model

        model.create(spec.scratch, spec.seed, _initial(context))
    for role in context.stage.inputs:
        context.input(role)


def _job(context: StageContext, output: Path) -> Any:
    from cft_ray.training.job import Job

    spec = context.stage.spec
    assert isinstance(spec, FinetuneSpec)
    return Job(
        model=str(_initial(context)) if spec.scratch is not None else context.model("model"),
        rows=str(_training_rows(context)),
        template=spec.template,
        training=spec.training,
        seed=spec.seed,
        strategy=spec.strategy,
        inputs={role: str(context.input(role)) for role in context.stage.inputs},
        output=str(output),
        scratch=str(context.scratch),
        checkpoints=f"{context.checkpoints}/steps",
        attempt=context.attempt,
        label=f"training {context.stage.label}".strip(),
        data=spec.data,
        allow_left_out=spec.allow_left_out,
        fingerprint=context.stage.fingerprint,
        loggers=context.loggers,
    )


class _LiveSteps:
    """Sends step rows to the tables and to the display in the background, so that no step waits for storage."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._waiting: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._steps = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-steps", daemon=True)
        self._thread.start()

    def add(self, row: dict[str, Any], steps: int) -> None:
        """Take a step row; ``steps``: of the whole training."""
        self._steps = steps
        self._waiting.put(row)

    def close(self) -> None:
        """Send what is left."""
        self._closing.set()
        self._thread.join()
        self._try()

    def _run(self) -> None:
        while not self._closing.wait(REPORT_SECONDS):
            self._try()

    def _try(self) -> None:
        """Send; the artifact holds the rows as well, so no training fails for want of a reporter."""
        try:
            self._send()
        except Exception as error:  # noqa: BLE001 - of whatever is between here and the tables
            logging.getLogger(__name__).warning("steps of %s were not sent: %s", self._context.stage.label, error)

    def _send(self) -> None:
        rows = [self._waiting.get() for _ in range(self._waiting.qsize())]
        if not rows:
            return
        last = rows[-1]
        self._context.progress(
            done=last["step"], total=self._steps, unit="steps", loss=last["loss"], tokens_per_second=last["tokens_per_s"]
        )
        self._context.report("steps", rows, sequence=rows[0]["step"])


def _brought(context: StageContext) -> str:
    """Folder or URI of the files of a training that ended on another node, of this attempt alone."""
    return f"{context.checkpoints}/output-{context.attempt:04d}"
