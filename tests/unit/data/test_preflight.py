"""Local files are looked into before a run, and no further than need be."""

import json

import pytest

from cft_ray.data.formats import FORMATS
from cft_ray.data.preflight import check_files
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))


def stage(files, languages=("de",), columns=None, **more):
    columns = columns or FORMATS["alpaca"]
    spec = DatasetSpec(files=str(files), digest=str(files), columns=columns, languages=languages, **more)
    return Stage(spec, {}, "mine")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"instruction": "Nenne eine Farbe.", "input": "", "output": "Rot."}


def test_good_files_pass(tmp_path):
    write(tmp_path / "rows_de.jsonl", ROW)
    write(tmp_path / "rows_fr.jsonl", ROW)
    check_files([stage(tmp_path / "rows_{language}.jsonl", ("de", "fr"))])


def test_a_language_without_a_usable_row(tmp_path):
    write(tmp_path / "rows_de.jsonl", ROW)
    write(tmp_path / "rows_fr.jsonl", ROW | {"output": " "})
    with pytest.raises(UserError, match="'fr'"):
        check_files([stage(tmp_path / "rows_{language}.jsonl", ("de", "fr"))])


def test_a_missing_column(tmp_path):
    with pytest.raises(UserError, match="'instruction'"):
        check_files([stage(write(tmp_path / "rows.jsonl", {"question": "?", "output": "!"}))])


def test_of_large_files_only_the_beginning_is_read(tmp_path):
    path = write(tmp_path / "rows.jsonl", *[ROW] * 10_000)
    with path.open("a") as file:
        file.write("broken far behind\n")
    assert check_files([stage(path)], cheap=1000) == {}
    with pytest.raises(UserError, match="line 10001: broken JSON"):
        check_files([stage(path)])


def test_what_is_not_a_local_file_is_left_alone():
    check_files([stage("s3://nowhere/rows.jsonl"), Stage(DatasetSpec(toy="alpaca", columns={}, languages=("en",)))])
