"""kill -9 of the reporting actor, again and again, while 8 writers write: no acknowledged row is lost, none is doubled."""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import polars as pl
import psutil
import pytest
import ray
from ray.exceptions import WorkerCrashedError

import cft_ray
from cft_ray.metrics.reporter import Reporter, start_reporter

WRITERS, APPENDS, ROWS, KILLS = 8, 60, 7, 3

pytestmark = pytest.mark.usefixtures("ray_session")


def actor_process() -> psutil.Process | None:
    """The process of the reporting actor among our own Ray's."""
    for process in psutil.Process().children(recursive=True):
        if process.is_running() and process.name().startswith("ray::_Reporter"):
            return process
    return None


def on_disk(storage: Path) -> Counter:
    """(writer, step, loss) -> in how many rows of how many files it lies, by polars alone."""
    while True:
        files = sorted((storage / "tables" / "steps").glob("*.parquet"))
        try:
            return Counter(row for file in files for row in pl.read_parquet(file, columns=["fingerprint", "step", "loss"]).rows())
        except FileNotFoundError:
            continue  # merged away since the listing: look again


def test_kill_9_of_the_actor_while_8_writers_write(tmp_path: Path) -> None:
    reporter = start_reporter(str(tmp_path))
    acknowledged: list[tuple[int, int]] = []

    def write(writer: int) -> None:
        for number in range(APPENDS):
            first = number * ROWS
            rows = [{"step": step, "loss": writer + step / 1000} for step in range(first, first + ROWS)]
            reporter.append("steps", rows, fingerprint=f"w{writer}", attempt=1, sequence=first)
            acknowledged.append((writer, number))  # list.append is atomic

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in writers:
        thread.start()
    killed = []
    for share in range(1, KILLS + 1):
        while len(acknowledged) < share * WRITERS * APPENDS // (KILLS + 1):
            time.sleep(0.005)
        process = actor_process()
        assert process is not None
        promised = list(acknowledged)
        os.kill(process.pid, signal.SIGKILL)
        killed.append(process.pid)
        there = on_disk(tmp_path)
        for writer, number in promised:  # at the moment of the kill, before anything could be mended
            assert all(there[f"w{writer}", step, writer + step / 1000] for step in range(number * ROWS, (number + 1) * ROWS))
    for thread in writers:
        thread.join()
    assert len(set(killed)) == KILLS
    expected = {(f"w{w}", step, w + step / 1000) for w in range(WRITERS) for step in range(APPENDS * ROWS)}
    assert cft_ray.open(tmp_path).steps().select("fingerprint", "step", "loss").collect().height == len(expected)
    reporter.finish()
    assert on_disk(tmp_path) == Counter(expected)


def test_a_reporter_that_is_gone_for_good_is_replaced(tmp_path: Path) -> None:
    """What a second driver sees when the job that made the actor ends: Ray will not start that one again."""
    reporter = start_reporter(str(tmp_path))
    row = [{"step": 1, "loss": 0.5}]
    reporter.append("steps", row, fingerprint="f", attempt=1, sequence=0)
    ray.kill(reporter._actor)
    reporter.append("steps", row, fingerprint="f", attempt=1, sequence=0)
    reporter.append("steps", row, fingerprint="f", attempt=1, sequence=1)
    assert sum(on_disk(tmp_path).values()) == 2


def test_a_killed_writer_and_its_next_attempt(tmp_path: Path) -> None:
    reporter = start_reporter(str(tmp_path))

    @ray.remote(num_cpus=0.25, max_retries=0)
    def write(reporter: Reporter, attempt: int, first: int, last: int) -> None:
        for step in range(first, last):
            reporter.append("steps", [{"step": step, "loss": float(attempt)}], fingerprint="f", attempt=attempt, sequence=step)
        if attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerCrashedError):
        ray.get(write.remote(reporter, 1, 1, 8))
    ray.get(write.remote(reporter, 2, 5, 11))  # resumes from a checkpoint after step 4
    rows = cft_ray.open(tmp_path).steps().select("step", "loss").collect().rows()
    assert rows == [(step, 1.0 if step < 5 else 2.0) for step in range(1, 11)]
