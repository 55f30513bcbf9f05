"""``*`` is the only wildcard, here and in object stores."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from cft_ray.data.paths import from_wildcard, matching, named, wildcard
from cft_ray.errors import UserError
from cft_ray.plan.digest import Digests
from cft_ray.storage.files import open_file
from cft_ray.storage.location import is_uri, local_path

NAMES = (
    *("run [v2]/a.jsonl", "run [v2]/b.jsonl", "run 2/a.jsonl"),
    *("what?.jsonl", "whats.jsonl", "a[1].jsonl", "a1.jsonl", ".a.jsonl"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.jsonl").mkdir()
    return tmp_path


CASES = [
    ("run [v2]/a.jsonl", ["run [v2]/a.jsonl"]),
    ("run [v2]/*.jsonl", ["run [v2]/a.jsonl", "run [v2]/b.jsonl"]),
    ("run */a.jsonl", ["run 2/a.jsonl", "run [v2]/a.jsonl"]),
    ("what?.jsonl", ["what?.jsonl"]),
    ("what?*", ["what?.jsonl"]),
    ("a[1]*", ["a[1].jsonl"]),
    ("*.jsonl", ["a1.jsonl", "a[1].jsonl", "what?.jsonl", "whats.jsonl"]),
    (".*", [".a.jsonl"]),
    ("*/*/*", []),
    ("no/*.jsonl", []),
    ("folder.jsonl", []),
    ("run [v2]", []),
]


@pytest.mark.parametrize(("pattern", "wanted"), CASES)
def test_local_patterns(folder: Path, pattern: str, wanted: list[str]) -> None:
    found = matching(f"{folder}/{pattern}")
    assert [os.path.relpath(file.path, folder) for file in found] == wanted
    assert [file.size for file in found] == [len(name) for name in wanted]
    assert [file.path for file in matching(f"file://{folder}/{pattern}")] == [file.path for file in found]
    assert [Path(file.location).read_text() for file in found] == wanted


@pytest.mark.parametrize(("pattern", "wanted"), CASES)
def test_patterns_of_an_object_store_are_the_same(bucket: MemoryStore, pattern: str, wanted: list[str]) -> None:
    for name in (*NAMES, "folder.jsonl/x"):
        bucket.put(f"data/{name}", name.encode())
    found = matching(f"s3://bucket/data/{pattern}")
    assert [file.path for file in found] == [f"data/{name}" for name in wanted]
    assert [file.size for file in found] == [len(name) for name in wanted]
    for file in found:
        with open_file(file.location) as opened:
            assert opened.read().decode() == file.path.removeprefix("data/")


def test_an_object_is_called_what_it_is_called(bucket: MemoryStore) -> None:
    """Nothing of an address is quoted, and nothing of it is an option."""
    for name in ("run [v2]/a b.jsonl", "a%20b.jsonl", "what?.jsonl", "Grüße#1.jsonl"):
        bucket.put(name, b"x")
        assert [file.path for file in matching(f"s3://bucket/{name}")] == [name]
    with pytest.raises(UserError, match="options"):
        matching("s3://bucket/data/x.jsonl?region=eu-north-1")


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=8), st.integers(0, 8))
def test_a_name_matches_itself_and_its_halves(name: str, place: int) -> None:
    literal = name.replace("*", "")
    if literal:
        assert wildcard(literal).fullmatch(literal)
        assert wildcard(literal[:place] + "*" + literal[place:]).fullmatch(literal) or literal.startswith(".")
        assert not wildcard(literal).fullmatch(literal + "x")


def test_names_of_repositories_and_ends_of_patterns() -> None:
    assert named("*de.json*", "data/part-de.jsonl") and named("data/*.json", "data/a.json")
    assert not named("data/*.json", "a.json") and not named("[a].json", "a.json") and not named("*.json", "a.jsonl")
    assert from_wildcard("s3://b/x*/y/z-*.jsonl") == "x*/y/z-*.jsonl" and from_wildcard("s3://b/x/y.jsonl") == "y.jsonl"


def test_plan_and_stage_find_the_same_files(folder: Path, tmp_path: Path) -> None:
    digests = Digests(tmp_path / "cache")
    assert digests.files(f"{folder}/run [v2]/*.jsonl", ["en"], where="grid") != digests.files(
        f"{folder}/run [v2]/a.jsonl", ["en"], where="grid"
    )
    for pattern, wanted in (("run?/*", "there is no file"), ("run [v2]", "is a folder"), ("*.nothing", "there is no file")):
        with pytest.raises(UserError, match=wanted):
            digests.files(f"{folder}/{pattern}", ["en"], where="grid")


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\xff.jsonl")).write_text("")
    with pytest.raises(UserError, match="no UTF-8") as raised:
        matching(f"{tmp_path}/*.jsonl")
    assert "\\udcff" in str(raised.value.where)


def test_a_found_file_has_its_size_and_time(folder: Path, bucket: MemoryStore) -> None:
    (here,) = matching(f"{folder}/whats.jsonl")
    status = (folder / "whats.jsonl").stat()
    assert (here.size, here.changed) == (status.st_size, status.st_mtime_ns)
    bucket.put("whats.jsonl", b"12345")
    changed = int(bucket.head("whats.jsonl")["last_modified"].timestamp() * 1e9)
    for pattern in ("s3://bucket/whats.jsonl", "s3://bucket/whats*"):
        (there,) = matching(pattern)
        assert (there.path, there.location) == ("whats.jsonl", "s3://bucket/whats.jsonl")
        assert (there.size, there.changed) == (5, changed)


def test_paths_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_path("a/b") == local_path(f"file://{tmp_path}/a/b") == tmp_path / "a" / "b"
    assert local_path("~/x") == tmp_path / "home" / "x"
    assert [is_uri(path) for path in ("s3://b/x", "file:///x", "/x", "x")] == [True, False, False, False]


def test_addresses_that_cannot_be_understood() -> None:
    with pytest.raises(UserError, match="unknown scheme") as raised:
        matching("nowhere://b/x")
    assert raised.value.where == "nowhere://b/x"
