"""A grid that names what `cft-ray fetch` has left is planned from it: each part by its commit, and where it lies."""

import json
from pathlib import Path
from typing import Any

import pytest

from cft_ray.artifacts.fetched import Fetched, Part
from cft_ray.errors import UserError
from cft_ray.grid.choices import chosen_benchmarks
from cft_ray.grid.schema import grid_from_text
from cft_ray.plan.build import build
from cft_ray.plan.items import items_parts
from cft_ray.plan.sources import dataset_part
from cft_ray.plan.specs import DatasetSpec, EvaluateSpec

GRID = """\
name: g
storage: runs/g
models: {m: {base: {hub: org/base}, it: {hub: org/it, revision: v1}}}
datasets:
  one: {hub: org/one, config: plain, split: test, format: alpaca, languages: [en], revision: r1}
  many: {hub: org/many, hub_files: "*{language}.json", format: alpaca, languages: [de, es], english: one}
pairs: [{phase1: one, phase2: many}, {phase1: it, phase2: many}]
strategies: [none]
template: plain
training: {epochs: 1}
evaluation: {benchmarks: [mmlu, {name: xquad, languages: [ar]}, {name: xlsum, languages: [zh]}, alpaca_eval],
  judge: {hub: org/judge}}
insight: {embedding: {model: org/embedder}, drift: [], activations: false, divergence: false, replay_quality: false}
"""
PARTS = {
    "base": Part("org/base", "model"),
    "it": Part("org/it", "model", "v1"),
    "judge": Part("org/judge", "model"),
    "embedder": Part("org/embedder", "model"),
    "one": Part("org/one", "dataset", "r1", "plain", "test", None, ("en",)),
    "many": Part("org/many", "dataset", None, None, None, "*{language}.json", ("de", "es")),
    "mmlu": Part("cais/mmlu", "dataset", None, "all", "test"),
    "xquad": Part("google/xquad", "dataset", None, "xquad.{language}", "validation", None, ("ar",)),
    "xlsum": Part("csebuetnlp/xlsum", "dataset", None, "{language}", "test", None, ("zh",)),
    "scored": Part("tatsu-lab/alpaca_eval", "dataset", None, pattern="alpaca_eval.json"),
    "length_control": Part("tatsu-lab/alpaca_eval", "dataset", None, pattern="df_gamed.csv"),
}
COMMITS = {name: f"{number:040x}" for number, name in enumerate(PARTS, 1)}


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Fetched:
    """What was fetched: the manifest of each part."""
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    fetched = Fetched(str(tmp_path / "copy"))
    for name, part in PARTS.items():
        manifest = {"repository": part.repository, "revision": COMMITS[name], "languages": list(part.folders)}
        manifest |= {"files": [], "fetched": "2026-11-21T00:00:00+00:00"}
        fetched.storage.write(*fetched.manifest_path(part), data=json.dumps(manifest).encode())
    return fetched


def planned(*sets: str):
    return build(grid_from_text(GRID, "g.yaml", sets))


def place(copy: Fetched, name: str) -> tuple[str, str]:
    """Commit and location of a part."""
    return COMMITS[name], copy.location(PARTS[name], COMMITS[name])


def test_models_and_data_sets_are_those_of_the_commit_that_was_fetched(copy):
    plan = planned(f"fetched={copy.storage.uri}")
    specs: dict[str, Any] = {stage.label: stage.spec for stage in plan.stages.values()}
    for label, name in (("m one", "base"), ("m it→many none", "it")):
        checkpoint = specs[label].checkpoints["model"]
        assert (checkpoint.revision, checkpoint.path) == place(copy, name)
    judge = specs["m one alpaca_eval"].checkpoints["judge"]
    assert (judge.hub, judge.revision, judge.path) == ("org/judge", *place(copy, "judge"))
    embedder = specs["one embeddings"].checkpoints["embedder"]
    assert (embedder.revision, embedder.path) == place(copy, "embedder")
    for name in ("one", "many"):
        assert (specs[name].revision, specs[name].files) == place(copy, name)


def test_items_are_those_of_the_commit_that_was_fetched(copy):
    plan = planned(f"fetched={copy.storage.uri}")
    specs = {stage.spec.benchmark: stage.spec for stage in plan.stages.values() if isinstance(stage.spec, EvaluateSpec)}
    for name in ("mmlu", "xquad", "xlsum"):
        items = specs[name].items
        assert items is not None and (items.revision, items.files) == (COMMITS[name], {"scored": place(copy, name)[1]})
        assert specs[name].nltk_data == f"{copy.storage.uri}/nltk_data"
    items = specs["alpaca_eval"].items
    assert items is not None and items.revision == COMMITS["scored"]
    assert items.files == {name: place(copy, name)[1] for name in ("scored", "length_control")}
    own = {
        stage.spec.nltk_data
        for stage in planned(f"fetched={copy.storage.uri}", "evaluation.nltk_data=/own").stages.values()
        if isinstance(stage.spec, EvaluateSpec)
    }
    assert own == {"/own"}


def test_a_revision_of_items_is_looked_for_under_its_name(copy):
    with pytest.raises(UserError, match=r"cais/mmlu@abc.*has not been fetched") as raised:
        planned(f"fetched={copy.storage.uri}", "evaluation.revisions={mmlu: abc}")
    assert "evaluation.benchmarks" in str(raised.value.where)


@pytest.mark.parametrize(
    ("absent", "where"),
    [
        ("base", "models.m.base.hub"),
        ("it", "models.m.it.hub"),
        ("one", "datasets.one.hub"),
        ("many", "datasets.many.hub"),
        ("judge", "evaluation.judge.hub"),
        ("embedder", "insight.embedding.model"),
    ],
)
def test_what_was_not_fetched_is_named_with_its_place(copy, absent, where):
    Path(copy.storage.location(*copy.manifest_path(PARTS[absent]))).unlink()
    with pytest.raises(UserError, match=f"{PARTS[absent].repository}.*has not been fetched") as raised:
        planned(f"fetched={copy.storage.uri}")
    assert where in str(raised.value.where)


def test_the_copy_is_no_part_of_the_fingerprint(copy, tmp_path):
    here = set(planned(f"fetched={copy.storage.uri}").stages)
    Path(copy.storage.uri).rename(tmp_path / "moved")
    assert set(planned(f"fetched={tmp_path / 'moved'}").stages) == here
    assert not here & set(planned().stages)


def test_what_is_asked_of_the_hub():
    grid = grid_from_text(GRID, "g.yaml")
    specs = {stage.label: stage.spec for stage in build(grid).stages.values() if isinstance(stage.spec, DatasetSpec)}
    assert {name: dataset_part(spec) for name, spec in specs.items()} == {name: PARTS[name] for name in ("one", "many")}
    named = {chosen.name: chosen for chosen in chosen_benchmarks(grid)}
    for name in ("mmlu", "xquad", "xlsum"):
        (part,) = items_parts(named[name], None).values()
        assert part.name == PARTS[name].name and part.folders == PARTS[name].folders
    assert items_parts(named["alpaca_eval"], "abc") == {
        "scored": Part("tatsu-lab/alpaca_eval", "dataset", "abc", pattern="alpaca_eval.json"),
        "length_control": Part("tatsu-lab/alpaca_eval", "dataset", "abc", pattern="df_gamed.csv"),
    }
    assert items_parts(named["xlsum"], None)["scored"].filled("{language}", "zh") == "chinese_simplified"
    toy = grid_from_text(GRID, "g.yaml", ["evaluation.benchmarks=[toy_letters]"])
    assert items_parts(chosen_benchmarks(toy)[0], None) == {}
