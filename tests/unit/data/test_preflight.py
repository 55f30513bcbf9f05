"""Local files are looked into before a run, and no further than need be."""

import json

import pytest

from cft_ray.data import preflight
from cft_ray.data.formats import FORMATS
from cft_ray.data.preflight import check_files
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec, DriftSpec
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


def told(files, languages=("de",), **more):
    """The account of a data set that is read whole."""
    given = stage(files, languages, **more)
    return check_files([given])[given.fingerprint]


LOST = [ROW] * 8 + [ROW | {"output": ""}] * 2


def test_every_stage_is_looked_at_whatever_stands_before_it(tmp_path):
    toy = Stage(DatasetSpec(toy="alpaca", columns={}, languages=("en",)))
    good = stage(write(tmp_path / "good.jsonl", ROW))
    bad = stage(write(tmp_path / "bad.jsonl", {"question": "?"}))
    others = [Stage(DriftSpec()), toy, stage("s3://nowhere/rows.jsonl"), good]
    assert set(check_files(others)) == {good.fingerprint}
    assert set(check_files([*others, good])) == {good.fingerprint}
    for before in (*others, stage(write(tmp_path / "large.jsonl", *[ROW] * 100))):
        with pytest.raises(UserError, match="'instruction'"):
            check_files([before, bad], cheap=len(json.dumps(ROW)) + 1)


def test_rows_in_are_rows_used_left_out_and_set_aside(tmp_path):
    account = told(write(tmp_path / "rows.jsonl", *LOST), allow_left_out=0.2)
    assert (account.came, account.used, account.left_out, account.set_aside) == (10, 8, {"no_output": 2}, {})
    sampled = told(write(tmp_path / "few.jsonl", *LOST), rows=5, allow_left_out=0.2)
    assert (sampled.used, sampled.set_aside) == (5, {"not_in_sample": 3})
    for language, count in (("de", 3), ("fr", 9)):
        write(tmp_path / f"rows_{language}.jsonl", *[ROW] * count)
    both = told(tmp_path / "rows_{language}.jsonl", ("de", "fr"), rows=5)
    assert (both.came, both.used, both.set_aside) == (12, 8, {"not_in_sample": 4})


def test_more_lost_than_is_allowed_is_refused_also_from_what_is_known(tmp_path):
    path = write(tmp_path / "rows.jsonl", *LOST)
    check_files([stage(path, allow_left_out=0.2)])
    for cache in (None, tmp_path / "another"):
        with pytest.raises(UserError, match=r"2 of 10 rows of data set mine are left out \(20.0 %, 5 % is allowed\)") as raised:
            check_files([stage(path)], cache=cache)
        assert "datasets.mine.allow_left_out=0.2" in str(raised.value.fix) and "ISO" not in str(raised.value.fix)
        assert raised.value.where == str(path)


def test_what_is_known_of_a_file_is_not_read_again(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROW)
    known = told(path)
    path.unlink()
    assert told(path) == known
    (tmp_path / "cache" / "rows.json").write_text(json.dumps({stage(path).fingerprint: '{"older": 1}'}))
    with pytest.raises(UserError, match="no such file"):
        told(path)


def test_files_are_read_whole_up_to_their_size_together(tmp_path):
    for language in ("de", "fr"):
        write(tmp_path / f"rows_{language}.jsonl", ROW)
    size = 2 * (tmp_path / "rows_de.jsonl").stat().st_size
    given = stage(tmp_path / "rows_{language}.jsonl", ("de", "fr"))
    assert set(check_files([given], cheap=size)) == {given.fingerprint}
    assert check_files([given], cheap=size - 1, cache=tmp_path / "other") == {}


def test_of_a_large_file_all_languages_are_looked_for(tmp_path):
    columns = FORMATS["alpaca"] | {"language": "l"}
    rows = [ROW | {"l": "de"}] * 9000 + [ROW | {"l": "fr"}] + [ROW | {"l": "German"}]
    path = write(tmp_path / "rows.jsonl", *rows)
    assert check_files([stage(path, ("de", "fr"), columns)], cheap=0) == {}
    with pytest.raises(UserError, match="no usable row in language 'es'") as raised:
        check_files([stage(path, ("de", "es"), columns)], cheap=0)
    assert "1 with their language spelled otherwise" in raised.value.what and "1 other_language" in raised.value.what
    assert "must hold ISO 639-1 codes: 'es'" in str(raised.value.fix)
    write(tmp_path / "of_de.jsonl", ROW)
    write(tmp_path / "of_fr.jsonl", ROW | {"output": ""}, ROW | {"output": ""})
    with pytest.raises(UserError, match=r"language 'fr' \(left out: 2 without an answer"):
        check_files([stage(tmp_path / "of_{language}.jsonl", ("de", "fr"))], cheap=0)


def test_a_language_without_rows_is_named_with_what_is_there_instead(tmp_path):
    columns = FORMATS["alpaca"] | {"language": "l"}
    path = write(tmp_path / "rows.jsonl", *[ROW | {"l": "de"}] * 3)
    with pytest.raises(UserError, match=r"no usable row in language 'fr'; 3 other_language") as raised:
        told(path, ("fr",), columns=columns)
    assert str(raised.value.fix) == "check the files, the column mapping and the languages"


def test_files_of_a_quarter_of_a_gigabyte_are_read_whole(tmp_path, monkeypatch):
    given = stage(write(tmp_path / "rows.jsonl", ROW))
    monkeypatch.setattr(preflight, "_size", lambda spec: 2**28 + 1)
    assert check_files([given]) == {}
    monkeypatch.setattr(preflight, "_size", lambda spec: 2**28)
    assert set(check_files([given])) == {given.fingerprint}
