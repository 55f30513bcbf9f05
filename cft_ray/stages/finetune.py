"""Training a model: `cft_ray.training` under Ray Train.

The trial's driver reads and mixes the rows; the workers, wherever they run, fetch the model and the other inputs from
the artifact store, train, and rank 0 reports steps. What a restart continues from is our own checkpoint under
``context.checkpoints``, so it serves a dead worker (Ray Train starts the group again) and a dead driver alike.
"""

import logging
import shutil
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from cft_ray.data.accounts import KEY
from cft_ray.errors import StageFailed, UserError
from cft_ray.plan.specs import FinetuneSpec
from cft_ray.stages.context import StageContext
from cft_ray.strategies import Strategy, load

RESTARTS = 2
"""times that a dead worker group is started again within one attempt"""
REPORT_SECONDS = 1.0
"""steps are sent to the tables this often"""


def run(context: StageContext) -> dict[str, Any]:
    """Train; see `docs/design.md` for files and outputs.

    Raises:
        UserError: rows, model or settings that cannot be trained with.
        StageFailed: the training diverged, or its workers died more than `RESTARTS` times.
    """
    spec, resources = context.stage.spec, context.stage.resources
    assert isinstance(spec, FinetuneSpec)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    gpu = resources.gpus > 0
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "context": context,
            "rows": [ray.put(_rows(context, spec))],  # in a list: a bare reference would be resolved into every worker
            "node": ray.get_runtime_context().get_node_id(),
        },
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if gpu else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            # Ray Train would continue a run of the same name; ours are continued by our own checkpoints.
            name=f"{context.stage.fingerprint[:16]}-{context.attempt}",
            storage_path=f"{context.checkpoints}/ray",
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )
    try:
        outcome = trainer.fit().return_value
    except TrainingFailedError as error:
        raise StageFailed(f"training workers failed: {_cause(error)}") from error
    assert isinstance(outcome, dict)
    if isinstance(error := outcome.get("error"), Exception):
        raise error
    if outcome["remote"]:
        _copy(f"{context.checkpoints}/output", str(context.output))
    return outcome["outputs"]


def _rows(context: StageContext, spec: FinetuneSpec) -> pa.Table:
    strategy = load(spec.strategy) if spec.strategy else Strategy()
    rows = pq.read_table(context.input("data") / "rows.parquet")
    mixed = strategy.rows(rows, {role: context.input(role) for role in context.stage.inputs}, spec.seed)
    return mixed.select([name for name in rows.column_names if name in mixed.column_names])


def _cause(error: BaseException) -> str:
    """The last line of what happened, which names the exception."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1]


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """One training worker. Errors that every rank meets alike are returned: starting again would not mend them."""
    import torch

    from cft_ray.training import engine
    from cft_ray.training.loop import train

    context: StageContext = config["context"]
    if context.stage.resources.gpus == 0:
        torch.set_num_threads(max(1, int(context.stage.resources.cpus)))
    rank, _ = engine.join()
    remote = ray.get_runtime_context().get_node_id() != config["node"]
    output = context.scratch / "output" if remote else context.output
    live = _LiveSteps(context) if rank == 0 else None
    try:
        if engine.is_first_of_machine():  # fetches into this machine's cache; the other ranks find it there
            _prepare(context, config["rows"][0])
        torch.distributed.barrier()
        summary = train(_job(context, output), live.add if live else None)
    except (UserError, StageFailed) as error:
        return {"error": error}
    finally:
        if live:
            live.close()
    if rank == 0 and remote:
        _copy(str(output), f"{context.checkpoints}/output")
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
    return {"outputs": outputs, "remote": remote}


def _initial(context: StageContext) -> Path:
    return context.scratch / "initial"


def _training_rows(context: StageContext) -> Path:
    return context.scratch / "rows.parquet"


def _prepare(context: StageContext, rows: Any) -> None:
    """What the ranks of this machine read: rows, and a model initialised here if the spec asks for one."""
    spec = context.stage.spec
    assert isinstance(spec, FinetuneSpec)
    pq.write_table(ray.get(rows), _training_rows(context))
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
        self._send()

    def _run(self) -> None:
        while not self._closing.wait(REPORT_SECONDS):
            self._send()

    def _send(self) -> None:
        rows = [self._waiting.get() for _ in range(self._waiting.qsize())]
        if not rows:
            return
        last = rows[-1]
        self._context.progress(
            done=last["step"], total=self._steps, unit="steps", loss=last["loss"], tokens_per_second=last["tokens_per_s"]
        )
        self._context.report("steps", rows, sequence=rows[0]["step"])


def _copy(source: str, target: str) -> None:
    """Copy a folder's files; both are folders or URIs."""
    (here, origin), (there, place) = (
        pafs.FileSystem.from_uri(name) if "://" in name else (pafs.LocalFileSystem(), name) for name in (source, target)
    )
    there.create_dir(place, recursive=True)
    pafs.copy_files(origin, place, source_filesystem=here, destination_filesystem=there)
