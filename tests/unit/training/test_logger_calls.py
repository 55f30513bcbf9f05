"""What loggers are told, and what is said of one that fails."""

import logging
import types
from pathlib import Path
from typing import Any

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.loggers import Logger
from cft_ray.training import loggers

ROW = {name: float(place) for place, name in enumerate(loggers.METRICS)} | {"step": 7}


def test_what_each_logger_is_told(monkeypatch, tmp_path):
    told: list[Any] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            told.append(folder)

        def add_scalar(self, *given: Any) -> None:
            told.append(given)

        def flush(self) -> None:
            told.append("flushed")

    class Client:
        def __init__(self, tracking_uri: Any) -> None:
            told.append(tracking_uri)

        def get_experiment_by_name(self, title: str) -> Any:
            return types.SimpleNamespace(experiment_id=f"found {title}") if title == "known" else None

        def create_experiment(self, title: str) -> str:
            return f"made {title}"

        def create_run(self, identifier: str, run_name: str) -> Any:
            told.append((identifier, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="id"))

        def log_metric(self, *given: Any, **named: Any) -> None:
            told.append((*given, named))

    def init(**named: Any) -> Any:
        told.append(named)
        return types.SimpleNamespace(log=lambda row, step: told.append((row, step)))

    modules = {
        "torch.utils.tensorboard": types.SimpleNamespace(SummaryWriter=Writer),
        "mlflow": types.SimpleNamespace(MlflowClient=Client), "wandb": types.SimpleNamespace(init=init),
    }  # fmt: skip
    monkeypatch.setattr(loggers.importlib, "import_module", lambda name: modules[name])
    (log,) = loggers.build([Logger(name="tensorboard", folder="curves")], "run")
    log(ROW)
    assert told == [str(Path("curves/run")), *((f"train/{name}", ROW[name], 7) for name in loggers.METRICS), "flushed"]
    for experiment, found in (("known", "found known"), (None, "made cft-ray")):
        told.clear()
        (log,) = loggers.build([Logger(name="mlflow", tracking_uri="there", experiment=experiment)], "run")
        log(ROW)
        assert told == ["there", (found, "run"), *(("id", name, ROW[name], {"step": 7}) for name in loggers.METRICS)]
    told.clear()
    (log,) = loggers.build([Logger(name="wandb", project="p")], "r" * 40)
    log(ROW)
    assert told == [
        {"id": "r" * 32, "name": "r" * 40, "resume": "allow", "project": "p"},
        ({name: ROW[name] for name in loggers.METRICS}, 7),
    ]


def test_a_logger_that_cannot_be_opened_is_named(monkeypatch):
    for error, what, fix in (
        (ImportError("no module"), "the package mlflow-skinny is not installed (no module)", "pip install mlflow-skinny"),
        (
            RuntimeError("no server"),
            "it cannot be opened (RuntimeError: no server)",
            "check its options and credentials, or leave it out",
        ),
    ):

        def raising(name: str, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(loggers.importlib, "import_module", raising)
        with pytest.raises(UserError) as raised:
            loggers.build([Logger(name="mlflow")], "run")
        assert (raised.value.what, raised.value.where, raised.value.fix) == (what, "loggers: mlflow", fix)


def test_a_logger_that_fails_is_not_asked_again():
    asked: list[int] = []
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    def log(row: dict[str, Any]) -> None:
        asked.append(row["step"])
        if row["step"] == 2:
            raise OSError("full")

    guarded, listener = loggers._guarded("mine", log), Listener()
    logging.getLogger(loggers.__name__).addHandler(listener)
    try:
        for step in (1, 2, 3, 2):
            guarded({"step": step})
    finally:
        logging.getLogger(loggers.__name__).removeHandler(listener)
    assert asked == [1, 2] and said == ["the logger mine stopped at step 2: OSError: full"]
