"""Grids that are wrong in every way that the schema knows, and in ways that people and machines come upon: each is refused
with one message that names the file, the place, its line and what would be right."""

# ruff: noqa: E501 - the table reads best with one case a line

import copy
import json
from typing import Any, Literal, get_origin

import pytest
import yaml
from pydantic import BaseModel

from cft_ray.errors import UserError
from cft_ray.grid.schema import grid_from_text, load_grid
from cft_ray.grid.tree import dotted
from cft_ray.strategies import REGISTRY
from tests.planted.fullgrid import FULL, Place, Setting, mappings, settings


def changed(place: Place, value: Any, whole: dict[str, Any] = FULL) -> dict[str, Any]:
    """A copy of a grid with one value set, items on the way made where there are none."""
    values = copy.deepcopy(whole)
    node: Any = values
    for part in place[:-1]:
        if isinstance(node, dict):
            node.setdefault(part, {})
        node = node[part]
    node[place[-1]] = value
    return values


class _Plain(yaml.CSafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def written(values: Any) -> str:
    """As YAML, one value a line, without aliases."""
    return yaml.dump(values, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=1000)


def line_of(text: str, place: Place) -> int:
    """The line of a value's key or item, as PyYAML's own composer has it."""
    node = yaml.compose(text, Loader=yaml.CSafeLoader)
    line = 0
    for part in place:
        if isinstance(node, yaml.MappingNode):
            key, node = next((key, value) for key, value in node.value if key.value == part)
            line = key.start_mark.line
        else:
            assert isinstance(part, int) and isinstance(node, yaml.SequenceNode)
            node = node.value[part]
            line = node.start_mark.line
    return line + 1


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as raised:
        grid_from_text(text, "grid.yaml")
    error = raised.value
    assert error.where is not None and error.where.startswith("grid.yaml"), error
    assert error.fix, f"no remedy: {error}"
    assert str(error).replace("\n  fix:", "").isprintable(), f"more than one line, or what cannot be seen: {error!r}"
    assert len(str(error)) < 1500
    return error


def refused_at(values: Any, place: Place) -> UserError:
    """Refused, and the message names just this place and its line."""
    text = written(values)
    error = refused(text)
    assert error.where == f"grid.yaml: {dotted(place)} (line {line_of(text, place)})", error
    return error


def test_the_grid_itself_is_sound():
    grid = grid_from_text(written(FULL), "grid.yaml")
    assert set(FULL) >= set(type(grid).model_fields) - {"fetched", "max_parallel", "max_cells"}
    assert {choice.use or choice.name for choice in grid.strategies} == set(REGISTRY)


# --- generated from the schema -----------------------------------------------------------------------------------------

WORDS = {str: 3.5, bool: "perhaps", dict: 5, list: 5.5, tuple: 5.5}
ALL = list(settings())


def _of_wrong_type(setting: Setting) -> Any:
    """A value that none of the setting's types takes."""
    kinds = setting.types
    if any(kind in (int, float) for kind in kinds):
        return "many"
    if any(get_origin(kind) is Literal for kind in kinds) and str not in kinds:
        return ["no such word"] if not any(get_origin(kind) in (list, tuple) for kind in kinds) else {"no": "list"}
    if any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
        return [1, 2]
    first = next(kind for kind in kinds if kind is not type(None))
    return WORDS[get_origin(first) or first]


def _id(setting: Setting) -> str:
    return dotted(setting.place)


@pytest.mark.parametrize("setting", ALL, ids=_id)
def test_every_setting_refuses_a_value_of_another_type(setting):
    wrong = _of_wrong_type(setting)
    error = refused(written(changed(setting.place, wrong)))
    assert error.where is not None and f": {dotted(setting.place)}" in error.where, error


NUMBERS = [setting for setting in ALL if {int, float} & set(setting.types)]


@pytest.mark.parametrize("setting", NUMBERS, ids=_id)
def test_every_number_refuses_what_only_looks_like_one(setting):
    for wrong in (True, float("inf"), float("nan"), 10**30):
        refused_at(changed(setting.place, wrong), setting.place)


LIMITED = [(setting, limit, bound) for setting in NUMBERS for limit, bound in setting.limits.items()]


@pytest.mark.parametrize(
    ("setting", "limit", "bound"), LIMITED, ids=lambda item: _id(item) if isinstance(item, Setting) else str(item)
)
def test_every_limit_is_kept(setting, limit, bound):
    beyond = {"gt": bound, "lt": bound, "ge": bound - 1, "le": bound + 1}[limit]
    error = refused_at(changed(setting.place, int(beyond) if int in setting.types else float(beyond)), setting.place)
    assert float(str(error.fix).split()[-1]) == bound, error


def test_every_number_of_the_schema_has_both_limits():
    """Nothing that is counted is infinite or below nothing."""
    unlimited = [
        _id(setting) for setting in NUMBERS if not {"gt", "ge"} & set(setting.limits) or not {"lt", "le"} & set(setting.limits)
    ]
    assert unlimited == []


@pytest.mark.parametrize("setting", [setting for setting in ALL if int in setting.types and float not in setting.types], ids=_id)
def test_what_is_counted_is_whole(setting):
    refused_at(changed(setting.place, 1.5), setting.place)


@pytest.mark.parametrize(
    ("place", "model"),
    [(place, model) for place, model in mappings()],
    ids=lambda item: dotted(item) or "grid" if isinstance(item, tuple) else item.__name__,
)
def test_every_mapping_refuses_an_unknown_key(place, model):
    error = refused_at(changed((*place, "no_such_key"), 1), (*place, "no_such_key"))
    assert "no_such_key" in error.what


SWEPT = [
    (("training",), "batch_size"),
    (("training", "phase2"), "steps"),
    (("replay",), "temperature"),
    (("strategies", 5), "rank"),
]


@pytest.mark.parametrize(("section", "key"), SWEPT, ids=str)
@pytest.mark.parametrize("wrong", ["many", True, -1], ids=repr)
def test_a_wrong_item_of_a_sweep_is_named(section, key, wrong):
    refused_at(changed((*section, key), [4, wrong]), (*section, key, 1))


# --- written by hand ---------------------------------------------------------------------------------------------------

URIS = [
    "s3://", "s3:///key", "gs://", "gs:///x", "s3:/one-slash", "gs:/one-slash", "S3:/x", "s3:", "dbfs:/mnt/x", "dbfs:", "hdfs://host/x",
    "ftp://host/x", "http://host/x", "az://x/y", "abfss://x@y/z", "hf://datasets/x", "s3a://bucket/x", "~nobody-of-this-name/x", "",
    " ", "\t", "runs\nelsewhere", "runs\r", "s3://bucket/a//b", "s3://bucket/../other", "s3://bucket/./a", "s3://b ucket/x", "s3://-/x",
    "s3://key:secret@bucket/x", "s3://user@bucket/x", "s3://bucket/x?region=y", "file://runs", "file:runs", "runs/\x00", "runs/\x1b[31m",
    "runs/\u202etxt.exe", "runs/\u2028x",
]  # fmt: skip
BAD_NAMES = [
    ".", "..", "a b", "a/b", "a\\b", "a*", "a?", "a[1]", "a=b", "a,b", "a:b", "a→b", "", " ", "a\nb", "a\tb", "a\x00b", "a\x1bb", "a\x7fb",
    "a\u202eb", "a\u2066b", "a\u200bb", "a\ufeffb", "x" * 101, "ж" * 101, "語" * 90,
]  # fmt: skip
IDS = [
    "", "./model", "../model", "/models/x", "a/b/c", "a//b", "owner/", "/name", "a b/c", "owner/na me", "owner/name.git", "owner/-name",
    "owner/na--me", "owner/na..me", "https://huggingface.co/owner/name", "owner/name@main", "owner\\name", "x" * 97, "öwner/name", "owner/name\n",
]  # fmt: skip
REVISIONS = [
    "",
    " ",
    "a b",
    "..",
    "a..b",
    "-x",
    "/main",
    "main/",
    "a^",
    "a~1",
    "a:b",
    "x" * 256,
    "a\nb",
    "main.lock",
    "a//b",
    "@{1}",
    "a?b",
    "a*",
]
IMPORTS = [
    "a..b:C",
    ":C",
    ".m:C",
    "a.:C",
    "a:",
    "a:C.",
    "a:b:C",
    "a b:C",
    "1a:C",
    "a/b:C",
    "a.b:C()",
    "no_such_module_at_all:C",
    "json:NoSuch",
    "json:JSONDecoder",
    "this_name_is_unknown",
]
SEEDS = [-1, 1.5, 2**32, 2**63, 10**40, True, "zero", None, [0]]
SIZES = [
    ("workers", 10**9),
    ("workers", 0),
    ("workers", 2.5),
    ("cpus", 0),
    ("cpus", 1e9),
    ("cpus", -1),
    ("gpus", -1),
    ("gpus", 1.5),
    ("gpus", 10**6),
    ("cpus", 1e-9),
]


@pytest.mark.parametrize("uri", URIS, ids=ascii)
def test_a_storage_that_cannot_be_one(uri):
    for place in (("storage", "uri"), ("fetched",)):
        refused_at(changed(place, uri), place)


@pytest.mark.parametrize("path", [uri for uri in URIS if "?" not in uri], ids=ascii)
def test_a_path_that_cannot_be_one(path):
    for place in (
        ("datasets", "local", "files"),
        ("models", "large", "instruct", "path"),
        ("evaluation", "data_folder"),
        ("evaluation", "data", "xquad"),
        ("evaluation", "nltk_data"),
    ):
        refused_at(changed(place, path), place)


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_cannot_be_one(name):
    refused_at(changed(("name",), name), ("name",))
    refused_at(changed(("strategies", 0, "name"), name) | {"include": [], "exclude": []}, ("strategies", 0, "name"))
    for section in ("models", "datasets"):
        values = copy.deepcopy(FULL)
        values[section][name] = copy.deepcopy(next(iter(values[section].values())))
        error = refused(written(values))
        assert section in str(error.where), error


@pytest.mark.parametrize("identity", IDS, ids=ascii)
def test_a_hub_id_that_is_none(identity):
    for place in (("models", "large", "base", "hub"), ("datasets", "published", "hub")):
        refused_at(changed(place, identity), place)


@pytest.mark.parametrize("revision", REVISIONS, ids=ascii)
def test_a_revision_that_is_none(revision):
    for place in (
        ("models", "large", "base", "revision"),
        ("datasets", "published", "revision"),
        ("evaluation", "revisions", "mlqa"),
    ):
        refused_at(changed(place, revision), place)


@pytest.mark.parametrize("use", IMPORTS, ids=ascii)
def test_a_class_that_cannot_be_imported(use):
    refused_at(changed(("strategies", 0, "use"), use), ("strategies", 0, "use"))


@pytest.mark.parametrize("seed", SEEDS, ids=repr)
def test_a_seed_that_is_none(seed):
    refused_at(changed(("seeds",), [0, seed]) | {"exclude": []}, ("seeds", 1))
    refused_at(changed(("insight", "embedding", "seed"), seed), ("insight", "embedding", "seed"))


@pytest.mark.parametrize(("name", "value"), SIZES, ids=str)
def test_resources_that_no_machine_has(name, value):
    error = refused(written(changed(("resources", "finetune", name), value)))
    assert error.where is not None and "resources.finetune" in error.where


@pytest.mark.parametrize(
    "language", ["../x", "DE", "de/../../x", "deutsch", "", "d", "de-DE", "{language}", "*", "d e"], ids=ascii
)
def test_a_language_that_is_none(language):
    refused_at(changed(("datasets", "local", "languages"), [language]), ("datasets", "local", "languages", 0))
    refused_at(changed(("evaluation", "benchmarks", 0, "languages"), [language]), ("evaluation", "benchmarks", 0, "languages", 0))


# text, part of where, part of what
TEXTS: dict[str, tuple[str, str, str]] = {
    "nothing": ("", "grid.yaml", "mapping"),
    "a comment": ("# nothing\n", "grid.yaml", "mapping"),
    "a list": ("- a\n", "grid.yaml", "mapping"),
    "a word": ("grid\n", "grid.yaml", "mapping"),
    "NUL": ("name: a\x00b\n", "(line 1)", "U+0000"),
    "a control character": ("name: x\nstorage: a\x07b\n", "(line 2)", "U+0007"),
    "NUL by an escape": ('name: "a\\0b"\n', "name (line 1)", "U+0000"),
    "an escape sequence of the terminal": ('name: x\nstorage: "a\\e[31m"\n', "storage (line 2)", "U+001B"),
    "half of a character": ('name: "\\ud800"\n', "grid.yaml", ""),
    "a key with a control character": ('"na\\0me": x\n', "(line 1)", "U+0000"),
    "a key from right to left": ('"na\\u202eme": x\n', "(line 1)", "U+202E"),
    "a tab where spaces belong": ("name: x\nstorage:\n\turi: x\n", "(line 3)", "not YAML"),
    "an open bracket": ("name: [x\nstorage: y\n", "(line", "not YAML"),
    "an open quote": ("name: 'x\n", "(line", "not YAML"),
    "two documents": ("name: x\n---\nname: y\n", "(line 2)", "second document"),
    "an unknown anchor": ("name: *x\n", "name (line 1)", "anchor"),
    "a value inside itself": ("name: &x [*x]\n", "name", "anchor"),
    "a merge key": ("a: &a {x: 1}\nb: {<<: *a}\n", "b (line 2)", "key"),
    "a key that is a list": ("[a, b]: c\n", "(line 1)", "key"),
    "a Python object": ("name: !!python/object/apply:os.system [id]\n", "name", ""),
    "a binary value": ("name: !!binary aGk=\n", "name (line 1)", "type"),
    "a type of its own": ("name: !x y\n", "name (line 1)", "type"),
    "a word called a number": ("name: !!int many\n", "name (line 1)", "number"),
    "infinity": ("name: x\ntraining: {learning_rate: .inf}\n", "training.learning_rate (line 2)", ".inf"),
    "minus infinity": ("name: x\ntraining:\n  learning_rate: -.inf\n", "training.learning_rate (line 3)", "-.inf"),
    "no number": ("name: x\ntraining: {learning_rate: .nan}\n", "training.learning_rate (line 2)", ".nan"),
    "a number that overflows": ("name: x\ntraining: {learning_rate: 1e999}\n", "training.learning_rate (line 2)", "1e999"),
    "a number of 65 bits": ("name: x\nseeds: [0, 18446744073709551616]\n", "seeds[1] (line 2)", "18446744073709551616"),
    "a number of 5,000 digits": (f"name: x\nseeds:\n- {'9' * 5000}\n", "seeds[0] (line 3)", "999"),
    "deep lists": ("name: " + "[" * 100_000 + "]" * 100_000, "grid.yaml", "deep"),
    "deep mappings": ("".join(f"{' ' * depth}a:\n" for depth in range(900)), "grid.yaml", "deep"),
    "many values": ("name: [" + "1," * 250_000 + "]", "name", "too many"),
    "a bomb of aliases": ("a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)), "grid.yaml", "too many"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_no_grid(case):
    text, where, what = TEXTS[case]
    error = refused(text)
    assert where in str(error.where) and what in error.what, error


# place, value, part of what
VALUES: dict[str, tuple[Place, Any, str]] = {
    "its own counterpart": (("datasets", "many", "english"), "many", "its own English counterpart"),
    "a model without a base": (("models", "tiny"), {"instruct": {"hub": "a/b"}}, "no checkpoint `base`"),
    "a checkpoint that starts from itself": (("models", "tiny", "base"), {"start": "base", "train": {"data": "alpaca"}}, "circle"),
    "a checkpoint with two origins": (("models", "large", "base"), {"hub": "a/b", "path": "x"}, "hub and path"),
    "a checkpoint without one": (("models", "large", "base"), {"revision": "main"}, "no origin"),
    "a training of a published model": (("models", "large", "base"), {"hub": "a/b", "train": {"data": "alpaca"}}, "train"),
    "a model of odd heads": (("models", "tiny", "base", "scratch"), {"hidden_size": 100, "heads": 3}, "hidden_size"),
    "a data set without an origin": (("datasets", "local"), {"languages": ["de"]}, "no origin"),
    "a data set of two": (("datasets", "local"), {"languages": ["de"], "toy": "alpaca", "hub": "a/b"}, "hub and toy"),
    "a toy language that is not there": (("datasets", "alpaca", "languages", 0), "fr", "fr"),
    "columns without instructions": (("datasets", "local", "columns"), {"output": "a"}, "instruction"),
    "a column that is none": (("datasets", "local", "columns"), {"instruction": "q", "answer": "a"}, "answer"),
    "a pair of a word": (("pairs", 0), "alpaca", "alpaca"),
    "a pair of nothing": (("pairs", 1, "phase1"), "nothing", "nothing"),
    "a strategy twice": (("strategies", 1), {"name": "none"}, "twice"),
    "an unknown strategy": (("strategies", 1), {"name": "LF_H9"}, "LF_H9"),
    "an unknown benchmark": (("evaluation", "benchmarks", 0, "name"), "toy_leters", "toy_leters"),
    "an unknown language of a benchmark": (("evaluation", "benchmarks", 0, "languages"), ["fr"], "fr"),
    "a judge of nobody": (("evaluation", "judge"), {"key_env": "KEY"}, "no judge"),
    "a judge with its key": (("evaluation", "judge", "key_env"), "sk-abcdef-123456", ""),
    "an endpoint of another kind": (("evaluation", "judge", "base_url"), "ftp://judge.example", "endpoint"),
    "an endpoint with a password": (("evaluation", "judge", "base_url"), "https://me:pw@judge.example", "password"),
    "a key in the clear": (("evaluation", "judge", "base_url"), "http://judge.example/v1", "in the clear"),
    "a key in the clear to what looks like this machine": (("evaluation", "judge", "base_url"), "http://127.0.0.1.example/v1", "in the clear"),
    "a logger that is none": (("loggers", 1, "name"), "comet", "comet"),
    "a logger's option of another": (("loggers", 1), {"name": "mlflow", "folder": "x"}, "folder"),
    "an unknown option of a logger": (("loggers", 1, "tracking_url"), "x", "tracking_url"),
    "a secret": (("loggers", 2, "api_key"), "abc", "secret"),
    "a filter that says nothing": (("include", 0), {}, "nothing"),
    "a filter of an unknown strategy": (("exclude", 0, "strategy"), ["LoRa"], "LoRa"),
    "a pattern that matches nothing": (("exclude", 0, "strategy"), "Lora*", "Lora*"),
    "a pattern among others": (("exclude", 0, "strategy"), ["LoRA", "GX_*"], "GX_*"),
    "a filter of an unknown seed": (("exclude", 0, "seed"), 7, "7"),
    "a filter of a setting that is not swept": (("exclude", 0, "settings"), {"training.batch_size": 8}, "not swept"),
    "a filter that matches no cell": (("exclude",), [{"model": "tiny", "phase1": "instruct", "settings": {}}, {"model": "large", "phase1": "alpaca", "seed": 1, "strategy": "none", "settings": {"training.steps": 1}}], "not swept"),
    "a truth among seeds of a filter": (("exclude", 0, "seed"), True, "true"),
    "seeds without end": (("seeds",), list(range(30_000)), "cells"),
    "more devices than there are": (("resources", "finetune"), {"workers": 16, "gpus": 1}, "16 devices"),
    "a batch that cannot be split": (("training", "batch_size"), 9, "2 workers"),
    "a length given twice": (("training", "phase2"), {"steps": 8, "epochs": 1}, "twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_does_not_fit(case):
    place, value, what = VALUES[case]
    text = written(changed(place, value))
    error = refused(text)
    assert what in error.what, error
    assert error.where is not None and error.where.startswith(f"grid.yaml: {dotted(place[:1])}") and "(line " in error.where, (
        error
    )
    if case == "a judge with its key":
        assert "abcdef" not in str(error)


def test_a_key_may_go_to_this_machine_or_as_is_said():
    for url in ("http://localhost:8000/v1", "http://127.0.0.3/v1", "http://[::1]:80/v1", "https://judge.example/v1"):
        assert grid_from_text(written(changed(("evaluation", "judge", "base_url"), url)))
    judge = {"model": "judge", "base_url": "http://judge.example/v1"}
    for more in ({}, {"key_env": "KEY", "insecure": True}):
        assert grid_from_text(written(changed(("evaluation", "judge"), judge | more)))


def test_counterparts_in_a_circle():
    values = changed(("datasets", "alpaca", "english"), "many")
    error = refused(written(values))
    assert "circle" in error.what and error.where is not None and "english" in error.where


def test_a_filter_of_which_no_cell_is_like_all_parts():
    values = changed(
        ("exclude",), [{"model": "large", "phase1": "alpaca"}, {"model": "tiny", "phase1": "instruct", "strategy": "none"}]
    )
    values["pairs"] = [{"phase1": "alpaca", "phase2": "many"}, {"phase1": "instruct", "phase2": "many"}]
    values["include"] = []
    assert len(grid_from_text(written(values)).exclude) == 2
    values["exclude"].append({"strategy": "LoRA", "settings": {"strategy.rank": 4}})
    assert refused_at(values, ("exclude", 2, "settings", "strategy.rank")).fix is not None


@pytest.mark.parametrize(("warmups", "lengths"), [(200, 100), (2_000, 1_000), (20_000, 10_000)])
def test_cells_are_counted_and_not_made(warmups, lengths):
    values: dict[str, Any] = copy.deepcopy(FULL) | {"include": [], "exclude": []}
    values["training"]["warmup_steps"] = list(range(warmups))
    values["training"]["max_length"] = list(range(1, lengths + 1))
    error = refused_at(values, ("training", "warmup_steps"))
    assert f"the grid has {72 * warmups * lengths:,} cells" in error.what, error  # 2 models, 3 pairs, 6 strategies, 2 seeds
    assert f"{warmups:,} values of training.warmup_steps" in error.what and "max_cells" in str(error.fix), error


def test_the_number_of_cells_is_a_setting():
    values = copy.deepcopy(FULL) | {"include": [], "exclude": [], "max_cells": 71}
    assert "72 cells" in refused(written(values)).what
    values["max_cells"] = 72
    assert grid_from_text(written(values)).max_cells == 72


# --- files ---------------------------------------------------------------------------------------------------------------


def test_what_is_no_regular_file(tmp_path):
    import os

    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, "/dev/zero", "/dev/null", tmp_path / "absent.yaml", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(UserError) as raised:
            load_grid(path)
        assert raised.value.fix and raised.value.where, raised.value


def test_bytes_that_are_no_text(tmp_path):
    for content, what in (
        (b"name: \xff\n", "0xff"),
        (b"name: x\n" + "seeds: ä".encode("latin-1"), "0xe4"),
        (b"\xff\xfen\0a\0", "0xff"),
    ):
        (tmp_path / "grid.yaml").write_bytes(content)
        with pytest.raises(UserError) as raised:
            load_grid(tmp_path / "grid.yaml")
        assert what in raised.value.what and "(line" in str(raised.value.where), raised.value


def test_the_table_is_as_long_as_is_claimed():
    by_hand = (
        len(URIS) * 7
        + len(BAD_NAMES) * 4
        + len(IDS) * 2
        + len(REVISIONS) * 3
        + len(IMPORTS)
        + len(SEEDS) * 2
        + len(SIZES)
        + len(TEXTS)
        + len(VALUES)
    )
    generated = len(ALL) + len(NUMBERS) * 4 + len(LIMITED)
    assert by_hand >= 150 and generated >= 150, json.dumps([by_hand, generated])
