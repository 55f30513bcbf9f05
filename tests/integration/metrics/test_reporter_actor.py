"""The reporting actor in a real Ray: what is acknowledged is on disk, whoever sends it and from where."""

import os
from pathlib import Path

import polars as pl
import pytest
import ray

import cft_ray
from cft_ray.errors import UserError
from cft_ray.metrics.reporter import Reporter, start_reporter

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reporter")


@pytest.fixture(scope="module")
def reporter(ray_session: None, storage: Path) -> Reporter:
    return start_reporter(str(storage))


def steps(first: int, count: int) -> list[dict]:
    return [{"step": step, "loss": float(step)} for step in range(first, first + count)]


def files(storage: Path, table: str) -> list[Path]:
    return sorted((storage / "tables" / table).glob("*.parquet"))


def test_acknowledged_rows_are_in_a_file(reporter: Reporter, storage: Path) -> None:
    reporter.append(
        "similarity", [{"measure": "des", "left": "a", "right": "b", "value": 0.5}], fingerprint="f", attempt=1, sequence=0
    )
    (file,) = files(storage, "similarity")
    assert pl.read_parquet(file).select("measure", "value").rows() == [("des", 0.5)]
    assert not [path for path in file.parent.iterdir() if path.name.startswith(".")]


def test_many_processes_send_and_send_again(reporter: Reporter, storage: Path) -> None:
    @ray.remote(num_cpus=0.25)
    def write(reporter: Reporter, writer: int) -> int:
        for first in (0, 10, 5, 20):  # 5 … 14 were sent before
            reporter.append("steps", steps(first, 10), fingerprint=f"w{writer}", attempt=1, sequence=first)
        return os.getpid()

    assert len(set(ray.get([write.remote(reporter, writer) for writer in (0, 1, 0, 1)]))) >= 1
    lazy = pl.scan_parquet(files(storage, "steps"))
    assert sorted(lazy.select("fingerprint", "step").collect().rows()) == [(f"w{w}", n) for w in (0, 1) for n in range(30)]


def test_a_second_start_finds_the_same_actor(reporter: Reporter, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(storage.parent)
    again = start_reporter(storage.name)  # another way to write the same place
    row = [{"measure": "mpd", "left": "a", "right": "b", "value": 1.0}]
    for sender in (reporter, again):
        sender.append("similarity", row, fingerprint="same", attempt=1, sequence=0)
    rows = pl.concat([pl.read_parquet(file) for file in files(storage, "similarity")])
    assert rows.filter(pl.col("fingerprint") == "same").height == 1


def test_what_does_not_fit_is_refused_and_harms_nobody(reporter: Reporter, storage: Path) -> None:
    for table, rows in (("steps", [{"step": 1}]), ("stepz", steps(0, 1)), ("steps", [{"step": "one", "loss": 0.0}])):
        with pytest.raises(UserError):
            reporter.append(table, rows, fingerprint="bad", attempt=1, sequence=0)
    reporter.append("steps", steps(0, 1), fingerprint="good", attempt=1, sequence=0)
    reporter.append("steps", [], fingerprint="good", attempt=1, sequence=1)
    assert cft_ray.open(storage).steps().filter(pl.col("fingerprint").is_in(["good", "bad"])).collect().height == 1


def test_unwritable_storage_is_the_users_business(tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("a file where a folder must be")
    reporter = start_reporter(str(tmp_path))
    with pytest.raises(UserError):
        reporter.append("steps", steps(0, 1), fingerprint="f", attempt=1, sequence=0)
    (tmp_path / "tables").unlink()
    reporter.append("steps", steps(0, 1), fingerprint="f", attempt=1, sequence=0)  # mended: the same actor goes on
    assert cft_ray.open(tmp_path).steps().collect().height == 1


def test_finish_compacts_and_more_may_follow(reporter: Reporter, storage: Path) -> None:
    for first in range(5):
        reporter.append("steps", steps(first, 1), fingerprint="late", attempt=1, sequence=first)
    before = cft_ray.open(storage).steps().collect()
    reporter.finish()
    assert len(files(storage, "steps")) == 1
    assert cft_ray.open(storage).steps().collect().equals(before)
    reporter.append("steps", steps(5, 1), fingerprint="late", attempt=1, sequence=5)
    assert cft_ray.open(storage).steps().collect().height == before.height + 1
