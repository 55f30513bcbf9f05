"""Optional loggers: each is a callable on step rows, built from what the grid asks for (`cft_ray.grid.loggers`).

The packages are imported only if asked for. What a logger raises while a training runs is said once and ends the logger,
not the training: the step rows are in the tables.
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cft_ray.errors import UserError
from cft_ray.grid.loggers import PACKAGES, Logger

StepLogger = Callable[[dict[str, Any]], None]
METRICS = ("loss", "lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory", "epoch")


def build(loggers: Sequence[Logger], run: str) -> list[StepLogger]:
    """Build loggers.

    Args:
        loggers: what the grid asks for.
        run: name of the run in the logger (the stage's fingerprint).

    Raises:
        UserError: a package is not installed, or the logger cannot be opened with its options.
    """
    return [_guarded(logger.name, _opened(logger, run)) for logger in loggers]


def _opened(logger: Logger, run: str) -> StepLogger:
    try:
        return _KINDS[logger.name](run, logger.options)
    except ImportError as error:
        package = PACKAGES[logger.name]
        raise UserError(
            f"the package {package} is not installed ({error})", where=f"loggers: {logger.name}", fix=f"pip install {package}"
        ) from error
    except Exception as error:
        raise UserError(
            f"it cannot be opened ({type(error).__name__}: {error})",
            where=f"loggers: {logger.name}",
            fix="check its options and credentials, or leave it out",
        ) from error


def _guarded(name: str, log: StepLogger) -> StepLogger:
    working = True

    def guarded(row: dict[str, Any]) -> None:
        nonlocal working
        if not working:
            return
        try:
            log(row)
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            working = False
            logging.getLogger(__name__).warning(
                "the logger %s stopped at step %s: %s: %s", name, row.get("step"), type(error).__name__, error
            )

    return guarded


def _tensorboard(run: str, settings: dict[str, Any]) -> StepLogger:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(
        str(Path(settings.get("folder", "tensorboard")) / run)
    )

    def log(row: dict[str, Any]) -> None:
        for name in METRICS:
            writer.add_scalar(f"train/{name}", row[name], row["step"])
        writer.flush()

    return log


def _mlflow(run: str, settings: dict[str, Any]) -> StepLogger:
    client = importlib.import_module("mlflow").MlflowClient(tracking_uri=settings.get("tracking_uri"))
    title = settings.get("experiment", "cft-ray")
    experiment = client.get_experiment_by_name(title)
    identifier = experiment.experiment_id if experiment else client.create_experiment(title)
    run_id = client.create_run(identifier, run_name=run).info.run_id

    def log(row: dict[str, Any]) -> None:
        for metric in METRICS:
            client.log_metric(run_id, metric, row[metric], step=row["step"])

    return log


def _wandb(run: str, settings: dict[str, Any]) -> StepLogger:
    session = importlib.import_module("wandb").init(id=run[:32], name=run, resume="allow", **settings)

    def log(row: dict[str, Any]) -> None:
        session.log({name: row[name] for name in METRICS}, step=row["step"])

    return log


_KINDS: dict[str, Callable[[str, dict[str, Any]], StepLogger]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
