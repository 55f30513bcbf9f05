"""Every mistake that a user can make in a grid: exit code 2, one message with its place and its remedy, nothing written."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CFT_RAY = Path(sys.executable).parent / "cft-ray"
GRID: dict[str, Any] = {
    "name": "bad",
    "storage": {"uri": "runs"},
    "models": {
        "tiny": {
            "base": {
                "scratch": {"hidden_size": 64, "layers": 4, "heads": 2, "kv_heads": 1, "intermediate_size": 128},
                "train": {"data": "mixture"},
            }
        }
    },
    "datasets": {
        "mixture": {"toy": "mixture", "languages": ["en"]},
        "alpaca": {"toy": "alpaca", "languages": ["en"]},
        "multialpaca": {"toy": "multialpaca", "languages": ["de"], "english": "alpaca"},
    },
    "pairs": [{"phase1": "alpaca", "phase2": "multialpaca"}],
    "strategies": ["none"],
    "template": {"name": "toy"},
    "training": {"steps": 10, "batch_size": 8, "precision": "fp32", "max_length": 128},
    "evaluation": {"benchmarks": ["toy_letters"]},
}
OWN = {"files": "rows.jsonl", "format": "alpaca", "languages": ["de"], "english": "alpaca"}

# name -> (path in the grid, new value), words that the message must hold (place, what, remedy)
MISTAKES: dict[str, tuple[tuple[Any, ...], Any, tuple[str, ...]]] = {
    "unknown key": (("training", "learning_rat"), 1e-4, ("grid.yaml", "learning_rat", "learning_rate")),
    "wrong type": (("training", "batch_size"), "many", ("grid.yaml", "training.batch_size", "many")),
    "missing data set": (("pairs", 0, "phase2"), "multialpacca", ("grid.yaml", "pairs[0].phase2", "did you mean multialpaca")),
    "missing english counterpart": (
        ("datasets", "multialpaca", "english"),
        "alpca",
        ("datasets.multialpaca.english", "did you mean alpaca"),
    ),
    "unknown strategy": (("strategies",), ["none", "LF_H3"], ("grid.yaml", "strategies", "LF_H3", "LF_H")),
    "phase 1 names nothing": (("pairs", 0, "phase1"), "instrct", ("grid.yaml", "pairs[0].phase1", "instrct")),
    "no cell left": (("exclude",), [{"model": "tiny"}], ("grid.yaml", "exclude")),
    "duplicate strategy": (("strategies",), ["none", "none"], ("grid.yaml", "strategies[1]", "none")),
    "duplicate pair": (("pairs",), [{"phase1": "alpaca", "phase2": "multialpaca"}] * 2, ("grid.yaml", "pairs[1]")),
    "batch not divisible": (("resources",), {"finetune": {"workers": 3}}, ("grid.yaml", "batch_size", "8", "3")),
    "top k above the layers": (("strategies",), [{"name": "LF_H1", "layers": 5}], ("grid.yaml", "strategies[0]", "5", "4")),
    "ratio above 1": (("strategies",), [{"name": "GR_10", "ratio": 1.5}], ("grid.yaml", "strategies[0].ratio", "1.5", "1")),
    "ratio of 0": (("strategies",), [{"name": "GR_10", "ratio": 0}], ("grid.yaml", "strategies[0].ratio", "0")),
    "storage that cannot be written": (("storage", "uri"), "rows.jsonl/below", ("rows.jsonl/below", "storage")),
    "storage of an unknown kind": (("storage", "uri"), "ftp://host/x", ("ftp", "s3://")),
    "no such file": (
        ("datasets", "multialpaca"),
        OWN | {"files": "row.jsonl"},
        ("grid.yaml", "datasets.multialpaca", "row.jsonl"),
    ),
    "file lacks a column": (("datasets", "multialpaca"), OWN | {"format": "orca"}, ("rows.jsonl", "'instruction'", "map")),
    "empty data set": (("datasets", "multialpaca"), OWN | {"files": "empty.jsonl"}, ("empty.jsonl", "the file is empty")),
    "not a number": (("training", "learning_rate"), float("nan"), ("grid.yaml", "training.learning_rate", "line")),
    "infinity": (("resources",), {"finetune": {"cpus": float("inf")}}, ("grid.yaml", "resources.finetune.cpus", "line")),
    "a truth for a number": (("training", "batch_size"), True, ("grid.yaml", "training.batch_size", "true")),
    "a storage of one slash": (("storage", "uri"), "s3:/bucket/x", ("grid.yaml", "storage.uri", "s3://bucket/x")),
    "a storage with a line break": (("storage", "uri"), "runs\nelsewhere", ("grid.yaml", "storage.uri", "line")),
    "a name that cannot be seen": (("name",), "bad\u202e", ("grid.yaml", "name", "202E")),
    "too many cells": (("seeds",), list(range(100_001)), ("grid.yaml", "seeds", "100,001 cells")),
    "its own counterpart": (("datasets", "multialpaca", "english"), "multialpaca", ("datasets.multialpaca.english", "its own")),
    "a pattern that matches nothing": (("exclude",), [{"strategy": "LF_*"}], ("grid.yaml", "exclude[0].strategy", "LF_*")),
    "no id of the hub": (
        ("models", "tiny", "base"),
        {"hub": "https://huggingface.co/a/b"},
        ("models.tiny.base.hub", "OWNER/NAME"),
    ),
    "no import path": (("strategies",), [{"name": "own", "use": "a..b:C"}], ("strategies[0].use", "package.module:Class")),
    "rows longer than the model": (
        ("training", "max_length"),
        513,
        ("grid.yaml", "training.max_length", "513", "512 positions"),
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with data files beside the grid."""
    row = {"instruction": "Sag etwas.", "input": "", "output": "Etwas."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "empty.jsonl").write_text("")
    return tmp_path


def refused(folder: Path, text: str, *arguments: str) -> str:
    """Run a grid that must be refused; its message."""
    (folder / "grid.yaml").write_text(text)
    before = {path: path.stat().st_size for path in folder.rglob("*")}
    environment = os.environ | {"CFT_RAY_CACHE": str(folder.parent / "cache")}
    command = [str(CFT_RAY), "run", "grid.yaml", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("cft-ray:") == 1 and len(done.stderr.splitlines()) == 2, "more than one message"
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert "fix:" in done.stderr
    assert {path: path.stat().st_size for path in folder.rglob("*")} == before, "something was written"
    return done.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_grid(mistake: str, folder: Path) -> None:
    path, value, words = MISTAKES[mistake]
    grid = copy.deepcopy(GRID)
    place: Any = grid
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    message = refused(folder, yaml.safe_dump(grid, sort_keys=False))
    assert all(word in message for word in words), message


def test_a_key_given_twice(folder: Path) -> None:
    message = refused(folder, yaml.safe_dump(GRID) + "\nname: again\n")
    assert "grid.yaml" in message and "name" in message


def test_yaml_syntax(folder: Path) -> None:
    text = yaml.safe_dump(GRID).replace("strategies:", "strategies: [none\nrest:")
    message = refused(folder, text)
    assert "grid.yaml" in message and "line" in message


def test_a_mistake_on_the_command_line(folder: Path) -> None:
    message = refused(folder, yaml.safe_dump(GRID), "--set", "training.lerning_rate=1e-4")
    assert "--set" in message and "learning_rate" in message


def test_what_a_run_will_lack_is_said_by_plan_and_refused_by_run(folder: Path) -> None:
    judge = {"model": "m", "base_url": "https://judge.example/v1", "key_env": "CFT_TEST_KEY"}
    (folder / "items.json").write_text("[]")
    evaluation = {"benchmarks": ["alpaca_eval"], "data": {"alpaca_eval": "items.json"}, "judge": judge}
    text = yaml.safe_dump(GRID | {"evaluation": evaluation, "loggers": ["wandb"]})
    message = refused(folder, text)
    assert "wandb" in message and "CFT_TEST_KEY" in message and "1 more" in message
    planned = subprocess.run(
        [str(CFT_RAY), "plan", "grid.yaml", "--json"], cwd=folder, capture_output=True, text=True, check=True
    )
    places = [lack["where"] for lack in json.loads(planned.stdout)["lacks"]]
    assert len(places) == 2 and "loggers" in places[0] and "evaluation.judge.key_env" in places[1]


def test_a_pipe_for_a_grid(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "grid.yaml")
    command = [str(CFT_RAY), "run", "grid.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "no regular file" in done.stderr and "fix:" in done.stderr


def test_no_grid_at_all(tmp_path: Path) -> None:
    done = subprocess.run([str(CFT_RAY), "plan", "absent.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "absent.yaml" in done.stderr and "Traceback" not in done.stderr
