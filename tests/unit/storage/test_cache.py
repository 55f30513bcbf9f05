"""Copies of other places: brought once, whole or absent, and removed only when nobody uses them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cft_ray.storage import cache
from cft_ray.storage.cache import find, keep


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def of(size: int):
    def fill(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"x" * size)

    return fill


def refused(folder: Path) -> None:
    raise AssertionError("it is here already")


def test_what_is_here_is_not_brought_again():
    kept = keep("models", "a", of(5))
    assert (kept.path / "deep" / "file").read_bytes() == b"xxxxx"
    assert keep("models", "a", refused).path == kept.path


def test_what_was_not_right_is_not_kept(root):
    def half(folder: Path) -> None:
        (folder / "half").write_text("…")
        raise ValueError("another digest")

    with pytest.raises(ValueError, match="another digest"):
        keep("models", "a", half)
    assert sorted(path.name for path in (root / "models").iterdir()) == [".a.bring", ".a.lock"]
    assert not (keep("models", "a", of(1)).path / "half").exists()


CODE = """
import os, sys, time
from pathlib import Path
from cft_ray.storage.cache import find, keep
def fill(folder):
    with open(sys.argv[1], "a") as log:
        log.write("x")
    (folder / "one").write_text("1")
    time.sleep(0.5)
    (folder / "two").write_text("2")
kept = keep("models", "shared", fill)
assert sorted(path.name for path in kept.path.iterdir()) == ["one", "two"]
print("here", flush=True)
if len(sys.argv) > 2:
    sys.stdin.readline()
"""


def test_of_many_processes_one_brings_it(tmp_path):
    crowd = [subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path / "log")]) for _ in range(6)]
    assert [process.wait() for process in crowd] == [0] * 6
    assert (tmp_path / "log").read_text() == "x"


def test_a_process_that_dies_on_the_way_is_replaced(tmp_path, root):
    process = subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path / "log")])
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (keep("models", "shared", of(3)).path / "deep" / "file").stat().st_size == 3
    assert sorted(path.name for path in (root / "models").iterdir()) == [".shared.bring", ".shared.lock", "shared"]


def test_above_the_limit_the_least_recently_used_goes(monkeypatch, root):
    monkeypatch.setenv(cache.VARIABLE, str(2500 / 2**30))
    for key in ("a", "b"):
        keep("models", key, of(1000))
        time.sleep(0.02)
    keep("models", "a", refused)
    time.sleep(0.02)
    keep("items", "c", of(1000))
    assert sorted(path.name for path in root.glob("*/[!.]*")) == ["a", "c"]


def test_what_is_in_use_stays(monkeypatch, root, tmp_path):
    """By this process, and by another one."""
    monkeypatch.setenv(cache.VARIABLE, "0")
    kept = keep("models", "mine", of(1000))
    command = [sys.executable, "-c", CODE, str(tmp_path / "log"), "wait"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "here\n"
    keep("models", "x", of(1000))
    assert sorted(path.name for path in root.glob("*/[!.]*")) == ["mine", "shared", "x"]
    other.communicate("\n")
    del kept
    keep("models", "y", of(1000))
    assert sorted(path.name for path in root.glob("*/[!.]*")) == ["y"]


def test_a_copy_that_is_given_up_is_brought_anew_while_others_still_use_it():
    old = keep("models", "a", of(1))
    cache.forget(old)
    cache.forget(old)
    assert (keep("models", "a", of(2)).path / "deep" / "file").stat().st_size == 2


def test_what_is_not_here_is_not_found_and_what_is_here_is_held(monkeypatch):
    assert find("models", "a") is None
    keep("models", "a", of(1))
    found = find("models", "a")
    assert found is not None and (found.path / "deep" / "file").read_bytes() == b"x"
    monkeypatch.setenv(cache.VARIABLE, "0")
    keep("models", "b", of(1))
    assert found.path.is_dir(), "it is in use"
    del found
    keep("models", "c", of(1))
    assert find("models", "a") is None
