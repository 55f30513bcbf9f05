"""The smoke grid, fresh: wall time and peak memory of everything it starts, against the bounds of `make demo`.

Memory is the proportional set size (PSS) summed over the whole process tree: pages that processes share, Ray's object
store among them, count once. It is sampled, so a peak shorter than the interval can be missed.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from record import ROOT, record

GIB = 2**30
BOUND_SECONDS, BOUND_BYTES = 600.0, 12 * GIB
PR_SET_CHILD_SUBREAPER = 36


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


def measure(command: list[str], interval: float) -> dict[str, float]:
    """Run a command to its end; seconds, peak bytes and most processes at a time of its tree."""
    # Processes whose parent ends stay in our tree instead of going to init.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    start = time.monotonic()
    peak, most = 0, 0
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"}) as running:
        while running.poll() is None:
            total, processes = tree_bytes()
            peak, most = max(peak, total), max(most, processes)
            time.sleep(interval)
        seconds = time.monotonic() - start
    if running.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {running.returncode}")
    return {"seconds": seconds, "peak_bytes": peak, "processes": most}


def main() -> None:
    parser = argparse.ArgumentParser(description="the smoke grid, fresh, against its bounds")
    parser.add_argument("--grid", default="grids/smoke.yaml")
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between two looks at the memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cft-ray-demo-") as storage:
        command = [str(Path(sys.executable).parent / "cft-ray"), "run", arguments.grid, "--set", f"storage.uri={storage}"]
        fresh = measure(command, arguments.interval)
        again = measure(command, arguments.interval)
    figures = {
        "seconds": round(fresh["seconds"], 1),
        "bound_seconds": BOUND_SECONDS,
        "seconds_to_bound": round(fresh["seconds"] / BOUND_SECONDS, 3),
        "peak_memory_gib": round(fresh["peak_bytes"] / GIB, 2),
        "bound_memory_gib": BOUND_BYTES / GIB,
        "memory_to_bound": round(fresh["peak_bytes"] / BOUND_BYTES, 3),
        "most_processes": fresh["processes"],
        "seconds_when_all_is_there": round(again["seconds"], 1),
    }
    print(record("demo", f"python benchmarks/demo.py --grid {arguments.grid}", figures), figures)


if __name__ == "__main__":
    main()
