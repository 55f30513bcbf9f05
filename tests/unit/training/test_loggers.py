"""Loggers: opened with their options or refused, and never the end of a training."""

import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cft_ray.errors import UserError
from cft_ray.grid.loggers import Logger, lacking
from cft_ray.training import loggers

ROW = {"step": 3, "loss": 1.5, "lr": 0.1, "grad_norm": 2.0, "tokens_per_s": 5.0, "mfu": 0.0, "peak_memory": 7, "epoch": 0.5}


def test_tensorboard_gets_the_row(tmp_path):
    (log,) = loggers.build([Logger(name="tensorboard", folder=str(tmp_path))], "f" * 64)
    log(ROW)
    events = EventAccumulator(str(tmp_path / ("f" * 64)))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 1.5)]


def test_mlflow_gets_the_row(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (log,) = loggers.build([Logger(name="mlflow", tracking_uri=tmp_path.as_uri(), experiment="mine")], "f" * 64)
    log(ROW)
    (metric,) = tmp_path.rglob("metrics/loss")
    assert metric.read_text().split()[1:3] == ["1.5", "3"]


def test_relative_folders_are_the_user_s_and_not_the_worker_s(tmp_path):
    def anchored(**options):
        return Logger(**options).anchored(tmp_path).options

    assert anchored(name="tensorboard") == {"folder": f"{tmp_path}/tensorboard"}
    assert anchored(name="tensorboard", folder="/x/y") == {"folder": "/x/y"}
    assert anchored(name="mlflow", tracking_uri="mlruns") == {"tracking_uri": f"{tmp_path}/mlruns"}
    assert anchored(name="mlflow", tracking_uri="http://h:1") == {"tracking_uri": "http://h:1"}
    assert anchored(name="wandb", project="p", dir="w") == {"project": "p", "dir": f"{tmp_path}/w"}


def test_a_logger_that_cannot_be_opened_says_which_and_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="tensorboard"):
        loggers.build([Logger(name="tensorboard", folder=str(tmp_path / "file"))], "run")


def test_a_package_that_is_not_there_is_known_beforehand(monkeypatch):
    monkeypatch.setattr("cft_ray.grid.loggers.find_spec", lambda name: None if name == "wandb" else object())
    assert lacking([Logger(name="tensorboard")]) is None
    missing = lacking([Logger(name="tensorboard"), Logger(name="wandb")])
    assert missing is not None and missing.where == "loggers[1]: wandb" and missing.fix == "pip install wandb"


def test_a_logger_that_fails_is_said_once_and_ends_alone(monkeypatch, caplog):
    seen = []

    def fails(row):
        seen.append(row["step"])
        raise ConnectionError("the server is gone")

    monkeypatch.setitem(loggers._KINDS, "mlflow", lambda run, options: fails)
    (log,) = loggers.build([Logger(name="mlflow")], "run")
    with caplog.at_level(logging.WARNING):
        log(ROW)
        log({**ROW, "step": 4})
    assert seen == [3] and len(caplog.records) == 1 and "the server is gone" in caplog.text
