"""What is kept of files: read once, written where something new is known, and never in the way."""

import json
import os
from pathlib import Path

import pytest

from cft_ray.data.cache import FileCache


def test_what_was_put_is_there_for_the_next(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "known.json"
    cache = FileCache("known.json", file)
    assert cache.get("a") is None
    cache.put("a", "1")
    assert cache.get("a") == "1" and not file.exists()
    cache.save()
    assert json.loads(file.read_text()) == {"a": "1"} and [path.name for path in file.parent.iterdir()] == ["known.json"]
    later = FileCache("known.json", file)
    later.put("b", "2")
    later.save()
    assert {key: FileCache("known.json", file).get(key) for key in "abc"} == {"a": "1", "b": "2", "c": None}


def test_a_cache_to_which_nothing_was_added_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    cache = FileCache("known.json", file)
    cache.get("a")
    cache.save()
    assert not file.exists()
    cache.put("a", "1")
    cache.save()
    file.unlink()
    cache.save()
    assert not file.exists(), "it was written already"


def test_its_place_is_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path))
    cache = FileCache("known.json")
    cache.put("a", "1")
    cache.save()
    assert (tmp_path / "known.json").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'"a"', b"\xff", b"[" * 100_000])
def test_what_is_no_cache_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "known.json").write_bytes(content)
    cache = FileCache("known.json", tmp_path / "known.json")
    assert cache.get("a") is None
    cache.put("a", "1")
    cache.save()
    assert json.loads((tmp_path / "known.json").read_text()) == {"a": "1"}


def test_what_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FileCache("known.json", tmp_path / "file" / "known.json")
    cache.put("a", "1")
    cache.save()
    assert cache.get("a") == "1"


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        cache = FileCache("known.json", tmp_path / "known.json")
        cache.put("a", "1")
        cache.save()
    finally:
        os.umask(before)
    assert (tmp_path / "known.json").stat().st_mode & 0o777 == 0o644
