"""A small grid, fresh: wall time and peak memory of all that it starts, against its bounds, and the time left that it shows.

    python benchmarks/demo.py                # the smoke grid, as `make demo` runs it
    python benchmarks/demo.py --of mini      # one pair, strategies none and GR_10, trainings of 60 steps, 40 items
    python benchmarks/demo.py --of toy       # the 56 cells of grids/toy.yaml

Memory is the proportional set size (PSS) summed over the whole process tree: pages that processes share, Ray's object
store among them, count once. It is sampled, so a peak shorter than the interval can be missed.

The time left is read off the lines that the run prints at each start and end of a stage, and compared with what was left:
from a fifth of the run on, it should be within a quarter of it. Nothing is asked of the last twentieth, where a quarter is
a second or two.
"""

import argparse
import contextlib
import ctypes
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from record import ROOT, record

GIB = 2**30
PR_SET_CHILD_SUBREAPER = 36
FROM, UNTIL = 0.2, 0.95
"""shares of the run between which the shown time left is judged"""
LEFT = re.compile(r"\(\d+ of \d+.*?(?:about (?P<left>[\dhms]+) left|time left unknown)\)")
UNITS = {"h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True)
class Grid:
    """A grid that is measured, and what it may take on two cores."""

    name: str
    path: str
    seconds: float
    memory_gib: float = 12
    sets: tuple[str, ...] = ()


SHORT = ("models.mistral-toy.base.train.training.steps=60", "training.steps=60", "training.phase2.steps=60")
GRIDS = {
    "demo": Grid("demo", "grids/smoke.yaml", 200),
    "mini": Grid(
        "demo_mini",
        "grids/smoke.yaml",
        60,
        sets=(
            "pairs=[{phase1: alpaca, phase2: multialpaca}]",
            "strategies=[none, GR_10]",
            "evaluation.limit=40",
            *SHORT,
        ),
    ),
    "toy": Grid("demo_toy", "grids/toy.yaml", 25 * 60),
}


@dataclass(frozen=True)
class Run:
    """One run of a command."""

    seconds: float
    peak_bytes: int
    processes: int
    shown: list[tuple[float, float | None]]
    """(seconds since its start, seconds shown to be left; None: unknown)"""


def tree_bytes() -> tuple[int, int]:
    """(PSS in bytes, number of processes) of all descendants of this process."""
    total, processes = 0, 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss
            processes += 1
        except psutil.Error:  # it ended meanwhile
            continue
    return total, processes


def seconds_of(duration: str) -> float:
    """``1m05s`` → 65."""
    return float(sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([hms])", duration)))


def measure(command: list[str], interval: float) -> Run:
    """Run a command to its end."""
    # Processes whose parent ends stay in our tree instead of going to init.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    start = time.monotonic()
    peak, most = 0, 0
    shown: list[tuple[float, float | None]] = []
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True, errors="replace"
    ) as running:

        def listen() -> None:
            assert running.stderr is not None
            for line in running.stderr:
                if (found := LEFT.search(line)) is not None:
                    left = found["left"]
                    shown.append((time.monotonic() - start, None if left is None else seconds_of(left)))
                sys.stderr.write(line)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        while running.poll() is None:
            total, processes = tree_bytes()
            peak, most = max(peak, total), max(most, processes)
            time.sleep(interval)
        seconds = time.monotonic() - start
        listener.join(timeout=10)
    if running.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {running.returncode}")
    return Run(seconds, peak, most, shown)


def time_left(run: Run) -> dict[str, object]:
    """How the shown time left compares with what was left until the last line about a stage."""
    end = max((at for at, _ in run.shown), default=run.seconds)
    begin = min((at for at, _ in run.shown), default=0.0)
    length = end - begin
    judged = [(at, left) for at, left in run.shown if begin + FROM * length <= at <= begin + UNTIL * length]
    errors = [abs(left - (end - at)) / (end - at) for at, left in judged if left is not None]
    series = [[round(at - begin, 1), left, round(end - at, 1)] for at, left in run.shown]
    return {
        "judged": len(judged),
        "unknown": len(judged) - len(errors),
        "worst_error": round(max(errors), 3) if errors else None,
        "within_a_quarter": round(sum(error <= 0.25 for error in errors) / len(errors), 3) if errors else None,
        "known_from_share": round(max((at - begin for at, left in run.shown if left is None and at < end), default=0) / length, 3)
        if length
        else None,
        "series_seconds_shown_left_and_left": series,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="a small grid, fresh, against its bounds")
    parser.add_argument("--of", choices=list(GRIDS), default="demo", help="which")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks at the memory")
    parser.add_argument("--storage", type=Path, help="a new folder that is kept; by default one that is deleted")
    arguments = parser.parse_args()
    grid = GRIDS[arguments.of]
    if arguments.storage is not None:
        arguments.storage.mkdir(parents=True)  # what is there already would be measured as done
    kept = contextlib.nullcontext(str(arguments.storage)) if arguments.storage else None
    with kept or tempfile.TemporaryDirectory(prefix="cft-ray-demo-") as storage:
        command = [str(Path(sys.executable).parent / "cft-ray"), "run", grid.path]
        for each in (*grid.sets, f"storage.uri={storage}"):
            command += ["--set", each]
        fresh = measure(command, arguments.interval)
        again = measure(command, arguments.interval)
    figures = {
        "seconds": round(fresh.seconds, 1),
        "bound_seconds": grid.seconds,
        "seconds_to_bound": round(fresh.seconds / grid.seconds, 3),
        "peak_memory_gib": round(fresh.peak_bytes / GIB, 2),
        "bound_memory_gib": grid.memory_gib,
        "memory_to_bound": round(fresh.peak_bytes / GIB / grid.memory_gib, 3),
        "most_processes": fresh.processes,
        "seconds_when_all_is_there": round(again.seconds, 1),
        "time_left": time_left(fresh),
    }
    print(record(grid.name, f"python benchmarks/demo.py --of {arguments.of}", figures), figures)


if __name__ == "__main__":
    main()
