"""Files that a grid names and that are not what they should be: one message with the place, before anything starts."""

import gzip
import json
import os
from pathlib import Path

import pytest
import yaml

from cft_ray.data.preflight import check_files
from cft_ray.errors import UserError
from cft_ray.grid.schema import grid_from_text
from cft_ray.plan.build import build
from cft_ray.plan.digest import Digests

ROW = {"instruction": "a", "input": "", "output": "b"}
LINE = json.dumps(ROW).encode() + b"\n"
GRID = {
    "name": "x",
    "storage": "runs",
    "models": {"m": {"base": {"scratch": {}, "train": {"data": "letters", "training": {"steps": 2}}}}},
    "datasets": {
        "letters": {"toy": "alpaca", "languages": ["en"]},
        "own": {"files": "rows.jsonl", "format": "alpaca", "languages": ["de"], "english": "letters"},
    },
    "pairs": [{"phase1": "letters", "phase2": "own"}],
    "strategies": ["none", {"name": "LF_H1", "layers": 2}],
    "evaluation": {"benchmarks": ["toy_letters"]},
}

# name of the file, its content, part of the message
FILES = {
    "a cut gzip": ("rows.jsonl.gz", gzip.compress(LINE * 1000)[:-30], "cut short"),
    "no gzip": ("rows.jsonl.gz", LINE, "gzip"),
    "gzip without its ending": ("rows.jsonl", gzip.compress(LINE), "gzip"),
    "half of a character": ("rows.jsonl", LINE + rb'{"instruction":"a","input":"","output":"\ud800"}', "line 2"),
    "a number of 5,000 digits": ("rows.jsonl", b'{"instruction":"a","input":"","output":' + b"9" * 5000 + b"}", "digits"),
    "infinity": ("rows.jsonl", LINE + b'{"instruction":"a","input":"","output":1e999}', "line 2"),
    "no number": ("rows.jsonl", b'{"instruction":"a","input":"","output":NaN}', "line 1"),
    "deep lines": ("rows.jsonl", LINE + b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2"),
    "a deep array": ("rows.json", b"[" * 100_000 + b"]" * 100_000, "broken JSON"),
    "a key twice": ("rows.jsonl", b'{"instruction":"a","instruction":"b","input":"","output":""}', "twice"),
    "nothing": ("rows.jsonl", b"", "empty"),
    "UTF-16": ("rows.jsonl", b"\xff\xfe" + LINE.decode().encode("utf-16-le"), "UTF-16"),
    "a Latin-1 letter": ("rows.jsonl", LINE + LINE.replace(b'"b"', b'"\xe4"'), "0xe4"),
    "a broken Parquet": ("rows.parquet", b"PAR1xxxx", "Parquet"),
    "a spreadsheet": ("rows.xlsx", b"PK\x03\x04", "xlsx"),
    "a pickle": ("rows.pkl", b"\x80\x04.", "pkl"),
}
CONFIGS = {
    "broken": b"{",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "a text": b'"llama"',
    "NUL": b"\0",
    "a number of 5,000 digits": b'{"num_hidden_layers": ' + b"9" * 5000 + b"}",
    "nothing": b"",
    "Latin-1": b'{"model_type": "\xe4"}',
}


def refused(tmp_path: Path, **changes: object) -> UserError:
    grid = grid_from_text(yaml.safe_dump(GRID | changes), "grid.yaml")
    with pytest.raises(UserError) as raised:
        check_files(build(grid, digests=Digests(tmp_path / "digests.json")).stages.values(), cache=tmp_path / "known")
    assert raised.value.where and raised.value.fix, raised.value
    return raised.value


def own(path: object, **more: object) -> dict[str, object]:
    return {"datasets": GRID["datasets"] | {"own": GRID["datasets"]["own"] | {"files": str(path), **more}}}


def test_the_grid_itself_is_sound(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(LINE)
    grid = grid_from_text(yaml.safe_dump(GRID | own(tmp_path / "rows.jsonl")))
    assert check_files(build(grid, digests=Digests(tmp_path / "d")).stages.values(), cache=tmp_path / "r")


@pytest.mark.parametrize("case", FILES)
def test_a_data_file_that_cannot_be_read(case, tmp_path):
    name, content, words = FILES[case]
    (tmp_path / name).write_bytes(content)
    error = refused(tmp_path, **own(tmp_path / name))
    assert name in str(error.where) and words in f"{error.where}: {error.what}", error


def test_a_data_file_that_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for path in (tmp_path / "rows.jsonl", tmp_path / "folder.jsonl", "/dev/zero", tmp_path / "absent.jsonl"):
        error = refused(tmp_path, **own(path))
        assert str(error.where).startswith("grid.yaml: datasets.own.files (line ") and str(path) in error.what, error


def test_a_language_without_the_code_that_a_pattern_wants(tmp_path):
    assert "xx" in refused(tmp_path, **own(tmp_path / "{flores}.jsonl", languages=["xx"])).what


@pytest.mark.parametrize("case", CONFIGS)
def test_a_model_folder_with_a_configuration_that_is_none(case, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(CONFIGS[case])
    (tmp_path / "rows.jsonl").write_bytes(LINE)
    model = {"models": {"m": {"base": {"path": str(tmp_path / "model")}}}}
    error = refused(tmp_path, **model, **own(tmp_path / "rows.jsonl"))
    assert "config.json" in error.what and len(str(error)) < 1000, error


def test_a_model_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.json")
    for path in (tmp_path / "absent", tmp_path / "file", tmp_path / "pipe", "/dev/null"):
        error = refused(tmp_path, models={"m": {"base": {"path": str(path)}}})
        assert str(error.where).startswith("grid.yaml: models.m.base.path (line "), error


@pytest.mark.parametrize("code", ["raise ValueError('no')", "import sys; sys.exit(0)", "1 +", "import no_such_module", "x = y"])
def test_a_strategy_whose_module_cannot_be_imported(code, tmp_path, monkeypatch):
    name = f"strategy_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as raised:
        grid_from_text(yaml.safe_dump(GRID | {"strategies": [{"name": "own", "use": f"{name}:Own"}]}), "grid.yaml")
    assert str(raised.value.where).startswith("grid.yaml: strategies[0].use (line ") and name in str(raised.value.fix)
