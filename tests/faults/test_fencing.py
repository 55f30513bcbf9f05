"""A process that is stopped past its lease, and goes on: what it makes then counts no more."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from drive import one_plan
from toygraph import World
from toystage import HASTE

import cft_ray
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.storage.root import Storage

PLANTED = Path(__file__).resolve().parent.parent / "planted"
WAIT = 120.0

pytestmark = pytest.mark.timeout(400)


def drive(storage: str, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(PLANTED / "drive.py"), "one", str(log.parent), str(seconds), storage]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(log: Path) -> list[int]:
    """Processes that began the stage."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[1]) for line in lines if line.endswith("begin")]


def until(condition, *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_stopped_process_that_goes_on_publishes_nothing(where, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(HASTE, "3")
    uri = str(tmp_path / "storage") if where == "folder" else f"s3://{s3.bucket()}/run"
    log = tmp_path / "runs.log"
    first = drive(uri, log, 2)
    until(lambda: len(begun(log)) == 1, first)
    os.kill(begun(log)[0], signal.SIGSTOP)
    second = drive(uri, log, 2)
    out, error = second.communicate(timeout=WAIT)
    assert second.returncode == 0, error
    assert json.loads(out) == {"one": "done"} and len(begun(log)) == 2
    stage = next(iter(one_plan(World(tmp_path), 2).stages.values()))
    store = ArtifactStore(Storage(uri))
    made = store.verify(stage.kind, stage.fingerprint)
    os.kill(begun(log)[0], signal.SIGCONT)
    out, error = first.communicate(timeout=WAIT)
    assert first.returncode == 0, error
    assert json.loads(out) == {"one": "done"}
    assert f"{begun(log)[1]} end" in log.read_text()  # the first may come to its end, too, and finds out when it publishes
    assert store.verify(stage.kind, stage.fingerprint) == made and made.attempt == 2
    assert made.outputs["pid"] == begun(log)[1]
    assert (store.fetch(stage.kind, stage.fingerprint) / "data.txt").read_text() == "one" * 3
    left = [entry.name for entry in store.storage.list("artifacts", stage.kind, stage.fingerprint)]
    assert left == sorted([made.folder, "manifest.json"])
    rows = cft_ray.open(uri).stages().sort("attempt").select("attempt", "status").collect().rows()
    assert rows == [(1, "failed"), (2, "done")]
    steps = cft_ray.open(uri).steps().filter(pl.col("fingerprint") == stage.fingerprint).collect()
    assert sorted(steps["step"].to_list()) == [1, 2, 3]
    assert pq.read_table(store.fetch(stage.kind, stage.fingerprint) / "tables" / "steps.parquet").num_rows == 3
