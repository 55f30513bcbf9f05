"""Optional loggers: each is a callable on step rows, built from a small declaration in the grid.

``[{name: tensorboard, folder: runs/tb}, {name: mlflow, tracking_uri: …, experiment: …}, {name: wandb, project: …}]``
The packages are imported only if asked for.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cft_ray.errors import UserError

StepLogger = Callable[[dict[str, Any]], None]
METRICS = ("loss", "lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory", "epoch")


def build(loggers: Sequence[dict[str, Any]], run: str) -> list[StepLogger]:
    """Build loggers.

    Args:
        loggers: declarations; ``name`` names the kind, the rest are its settings.
        run: name of the run in the logger (the stage's fingerprint).

    Raises:
        UserError: unknown kind or setting, or its package is not installed.
    """
    built = []
    for declaration in loggers:
        settings = dict(declaration)
        kind = settings.pop("name", None)
        if kind not in _KINDS:
            raise UserError(f"unknown logger {kind!r}", where="loggers", fix=f"use one of {', '.join(sorted(_KINDS))}")
        make, allowed = _KINDS[kind]
        if unknown := set(settings) - allowed:
            raise UserError(f"unknown setting {sorted(unknown)[0]!r}", where=f"loggers: {kind}", fix=f"known: {sorted(allowed)}")
        built.append(make(run, settings))
    return built


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the package {package} is not installed", where="loggers", fix=f"pip install {package}") from error


def _tensorboard(run: str, settings: dict[str, Any]) -> StepLogger:
    writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter(
        str(Path(settings.get("folder", "tensorboard")) / run)
    )

    def log(row: dict[str, Any]) -> None:
        for name in METRICS:
            writer.add_scalar(f"train/{name}", row[name], row["step"])
        writer.flush()

    return log


def _mlflow(run: str, settings: dict[str, Any]) -> StepLogger:
    client = _import("mlflow", "mlflow-skinny").MlflowClient(tracking_uri=settings.get("tracking_uri"))
    title = settings.get("experiment", "cft-ray")
    experiment = client.get_experiment_by_name(title)
    identifier = experiment.experiment_id if experiment else client.create_experiment(title)
    run_id = client.create_run(identifier, run_name=run).info.run_id

    def log(row: dict[str, Any]) -> None:
        for metric in METRICS:
            client.log_metric(run_id, metric, row[metric], step=row["step"])

    return log


def _wandb(run: str, settings: dict[str, Any]) -> StepLogger:
    session = _import("wandb", "wandb").init(id=run[:32], name=run, resume="allow", **settings)

    def log(row: dict[str, Any]) -> None:
        session.log({name: row[name] for name in METRICS}, step=row["step"])

    return log


_KINDS: dict[str, tuple[Callable[[str, dict[str, Any]], StepLogger], set[str]]] = {
    "tensorboard": (_tensorboard, {"folder"}),
    "mlflow": (_mlflow, {"tracking_uri", "experiment"}),
    "wandb": (_wandb, {"project", "entity", "mode", "dir"}),
}
