"""Every setting of the schema, changed on the command line of a tiny grid, is part of what is planned or shown; the few that are
neither are listed with the test that shows their effect. A new setting without either fails here."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from cft_ray.cli import app
from cft_ray.grid.schema import load_grid
from cft_ray.grid.tree import dotted
from cft_ray.plan.build import build
from tests.planted.fullgrid import FULL, Setting, settings

OTHERS: dict[str, Any] = {
    "name": "another",
    "seeds": [0, 2],
    "models.tiny.base.train.data": "alpaca",
    "models.tiny.base.train.training.max_length": 128,
    "models.tiny.base.scratch.heads": 1,
    "models.tiny.base.scratch.kv_heads": 2,
    "models.tiny.base.scratch.max_positions": 1024,
    "models.large.base.hub": "owner/other",
    "models.large.base.revision": "v2",
    "models.large.instruct.path": "models/other",
    "datasets.mixture.toy": "instruct",
    "datasets.published.hub": "owner/others",
    "datasets.published.revision": "v2",
    "datasets.published.config": "small",
    "datasets.published.split": "test",
    "datasets.published.hub_files": "{language}.parquet",
    "datasets.published.format": "orca",
    "datasets.published.languages": ["es"],
    "datasets.local.files": "other.{language}.jsonl",
    "datasets.local.columns": {"instruction": "a", "output": "q"},
    "datasets.many.english": "mixture",
    "strategies[1].use": "LF_H2",
    "strategies[5].target_modules": ["q_proj"],
    "template.system": "You answer.",
    "template.date": "2025-01-01",
    "replay.max_length": 256,
    "evaluation.benchmarks[0].use": "toy_numbers",
    "evaluation.benchmarks[0].ability": "LA",
    "evaluation.benchmarks[0].tasks": {"en": "toy_numbers"},
    "evaluation.benchmarks[0].metric": "acc",
    "evaluation.benchmarks[0].data": "eval_numbers",
    "evaluation.benchmarks[0].generation.max_new_tokens": 16,
    "evaluation.benchmarks[0].generation.stop": ["!"],
    "evaluation.benchmarks[1].languages": ["es"],
    "evaluation.template": "task",
    "evaluation.data": {"xquad": "other.parquet"},
    "evaluation.data_folder": "elsewhere",
    "evaluation.revisions": {"mlqa": "v2"},
    "evaluation.nltk_data": "nltk",
    "evaluation.judge.model": "another",
    "evaluation.judge.parameters": {"seed": 1},
    "evaluation.judge.base_url": "https://another.example/v1",
    "evaluation.judge.key_env": "ANOTHER_KEY",
    "insight.drift": ["datasets"],
    "insight.activations.prompts": "alpaca",
    "insight.activations.parallel": False,
    "insight.activations.template": "none",
    "insight.activations.parallel_template": "none",
    "cluster.device": "A100-80GB",
    "cluster.currency": "EUR",
}
"""Setting -> another valid value, where its type does not say one."""

TOGETHER: dict[str, list[tuple[str, Any]]] = {
    "pairs[0].phase1": [("pairs[0].phase1", "mixture"), ("include", [{"model": "tiny", "strategy": "none"}])],
    "pairs[0].phase2": [("pairs[0].phase2", "alpaca"), ("include", [{"model": "tiny", "strategy": "none"}])],
    "models.tiny.base.train.training.epochs": [("models.tiny.base.train.training", {"epochs": 3})],
    "evaluation.benchmarks[0].name": [("evaluation.benchmarks[0]", {"name": "letters", "use": "toy_letters"})],
    "strategies[5].name": [("strategies[5]", {"name": "other", "use": "LoRA", "rank": 4})],
    "datasets.published.missing": [("datasets.published", {"missing": "not yet", "languages": ["de"]})],
    "models.tiny.instruct.start": [
        ("models.tiny.instruct", {"start": "third", "train": {"data": "alpaca"}}),
        ("models.tiny.third", {"hub": "owner/third"}),
    ],
    "evaluation.judge.hub": [("evaluation.judge", {"hub": "owner/judge"})],
    "evaluation.judge.revision": [("evaluation.judge", {"hub": "owner/judge", "revision": "v2"})],
    "evaluation.judge.path": [("evaluation.judge", {"path": "models/other"})],
    "evaluation.judge.of": [("evaluation.judge", {"of": "tiny/base"})],
    "insight.embedding.model.hub": [("insight.embedding.model", {"hub": "owner/embedder"})],
    "insight.embedding.model.revision": [("insight.embedding.model", {"hub": "owner/embedder", "revision": "v2"})],
    "insight.embedding.model.path": [("insight.embedding.model", {"path": "embedder"})],
    "insight.embedding.model.lexical": [("insight.embedding.model", {"lexical": False, "hub": "owner/embedder"})],
}
"""Setting -> what is changed with it, where it does not go alone."""

LISTED: dict[str, str] = {
    "storage.uri": "tests/e2e/test_mini_grid.py",
    "fetched": "tests/integration/fetch/test_fetch.py",
    "max_parallel": "tests/unit/execute/test_schedule.py::test_concurrency_can_be_limited",
    "max_cells": "tests/unit/grid/test_malformed_grids.py::test_the_number_of_cells_is_a_setting",
    "cluster.max_devices": "tests/unit/grid/test_grid_errors.py::test_mistake_is_named_with_its_place",
    "loggers": "tests/unit/training/test_loggers.py",
    "include": "tests/unit/grid/test_cells.py::test_filters_by_value_list_glob_and_setting",
    "exclude": "tests/unit/grid/test_cells.py::test_filters_by_value_list_glob_and_setting",
    "evaluation.judge.insecure": "tests/unit/grid/test_malformed_grids.py::test_a_key_may_go_to_this_machine_or_as_is_said",
}
"""Setting, or section, that changes neither plan nor what is shown of it -> the test of its effect."""


def tiny(*, insight: bool) -> dict[str, Any]:
    """`FULL` with few cells; the insight section, which plans many stages, only where it is what is changed."""
    values: dict[str, Any] = copy.deepcopy(FULL) | {"exclude": []}
    if insight:
        values["evaluation"]["benchmarks"] = values["evaluation"]["benchmarks"][:1]
        return values | {"include": [{"model": "tiny", "phase1": "instruct", "strategy": "GR", "seed": 0}]}
    del values["insight"]
    values["include"] = [
        {"model": "tiny", "phase1": "instruct", "seed": 0},
        {"model": "tiny", "phase1": "alpaca", "strategy": "none"},
        {"model": "large", "phase1": ["published", "instruct"], "strategy": ["none", "GR"], "seed": 0},
    ]
    return values


def leaves() -> list[Setting]:
    """Each field of each model once: where this file has another value for it, else where `FULL` gives it, else where it
    may stand first. Sections count by their fields."""
    found: dict[tuple[type[BaseModel], str], list[Setting]] = {}
    for setting in settings():
        if not _section(setting):
            found.setdefault((setting.model, setting.name), []).append(setting)
    return [max(places, key=_told) for places in found.values()]


def _told(setting: Setting) -> int:
    name = dotted(setting.place)
    return 2 * (name in OTHERS or name in TOGETHER) + _given(setting)


def _given(setting: Setting) -> bool:
    node: Any = FULL
    for part in setting.place[:-1]:
        node = node[part]
    return setting.place[-1] in node


def _section(setting: Setting) -> bool:
    """Whether a setting is a mapping or list of further settings and nothing else."""
    if any(get_origin(kind) is Literal for kind in setting.types):
        return False
    overrides = setting.name in ("training", "replay", "generation") and dict[str, Any] in setting.types
    return overrides or any(_of_models(kind) for kind in setting.types)


def _of_models(kind: Any) -> bool:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return True
    return any(_of_models(part) for part in get_args(kind))


def another(setting: Setting) -> Any:
    """A valid value that is not the one that the setting has."""
    field = setting.model.model_fields[setting.name]
    node: Any = FULL
    for part in setting.place[:-1]:
        node = node[part]
    now = node.get(setting.name, None if field.default is PydanticUndefined else field.default)
    kinds, limits = setting.types, setting.limits
    for kind in kinds:
        if get_origin(kind) is Literal:
            return next(word for word in get_args(kind) if word != now)
    if bool in kinds:
        return not now
    if int in kinds and float not in kinds:
        return (now or 3) * 2 if (now or 3) * 2 <= limits["le"] else now - 1
    if float in kinds:
        return round((now or 0.5) / 2, 12)
    raise AssertionError(f"say in OTHERS which other value {dotted(setting.place)} may have, or in LISTED where it is tested")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the grid names."""
    folder = tmp_path_factory.mktemp("every")
    for name in ("de.jsonl", "other.de.jsonl"):
        (folder / name).write_text('{"q": "a", "a": "b"}\n' * 8)
    for model in ("instruct", "other"):
        (folder / "models" / model).mkdir(parents=True)
        (folder / "models" / model / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "name": model}))
    (folder / "embedder").mkdir()
    (folder / "embedder" / "modules.json").write_text("[]")
    for items in ("xquad/de.parquet", "xquad/es.parquet", "other.parquet", "elsewhere/xquad/de.parquet"):
        (folder / items).parent.mkdir(parents=True, exist_ok=True)
        (folder / items).write_bytes(items.encode())
    for insight in (True, False):
        (folder / f"{insight}.yaml").write_text(yaml.safe_dump(tiny(insight=insight), sort_keys=False))
    return folder


_KNOWN: dict[tuple[str, ...], str] = {}


def told(grid: str, changes: Sequence[tuple[str, Any]]) -> str:
    """All that `cft-ray plan` says of a grid, and what its stages are handed."""
    sets = [f"{path}={json.dumps(value)}" for path, value in changes]
    key = (grid, *sets)
    if key not in _KNOWN:
        options = [word for change in sets for word in ("--set", change)]
        done = CliRunner().invoke(app, ["plan", grid, "--json", *options])
        assert done.exit_code == 0, f"{sets}: {done.output} {done.exception}"
        stages = build(load_grid(grid, sets)).stages.values()
        _KNOWN[key] = json.dumps([json.loads(done.stdout), [stage.to_json() for stage in stages]])
    return _KNOWN[key]


def listed(name: str) -> str | None:
    """The test that shows a setting's effect, or its section's."""
    return next((test for start, test in LISTED.items() if name == start or name.startswith((f"{start}.", f"{start}["))), None)


CHANGED = [setting for setting in leaves() if listed(dotted(setting.place)) is None]


@pytest.mark.parametrize("setting", CHANGED, ids=lambda setting: dotted(setting.place))
def test_a_setting_is_part_of_what_is_planned(setting, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CFT_RAY_CACHE", str(folder / "cache"))
    grid, name = f"{setting.place[0] == 'insight'}.yaml", dotted(setting.place)
    changes = TOGETHER.get(name) or [(name, OTHERS[name] if name in OTHERS else another(setting))]
    assert told(grid, changes) != told(grid, ()), f"{name}: nothing of the plan depends on it"


def test_what_is_listed_exists(repository):
    for name, test in LISTED.items():
        path, _, function = test.partition("::")
        text = (repository / path).read_text()
        assert f"def {function}(" in text if function else f"{name.rpartition('.')[2]}" in text, (name, test)
    places = {dotted(setting.place) for setting in leaves()}
    assert [name for name in LISTED if not any(listed(place) for place in places if place.startswith(name))] == []
