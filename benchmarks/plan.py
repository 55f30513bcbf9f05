"""How long it takes to plan, against the bounds that the project set and the bare start of the libraries below.

Each figure is the median over several fresh processes: wall time of ``python -c``, imports included.

    python benchmarks/plan.py --runs 7
"""

import argparse
import statistics
import subprocess
import sys
import time

from record import ROOT, record

BARE = "import pydantic, yaml"
PLAN = (
    "from cft_ray.grid.schema import load_grid\nfrom cft_ray.plan.build import build\n"
    "plan = build(load_grid({path!r}, {sets!r}))\n"
)
COUNT = "print(len(plan.cells), len(plan.stages))"
FULL_BOUND_SECONDS, LARGE_BOUND_SECONDS = 1.5, 5.0


def median_seconds(code: str, runs: int) -> tuple[float, str]:
    """Median wall seconds of fresh processes, and what the last one printed."""
    seconds: list[float] = []
    printed = ""
    for _ in range(runs):
        start = time.perf_counter()
        printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="fresh processes per figure")
    runs = parser.parse_args().runs
    seeds = list(range(179))  # × 56 = 10,024 cells
    bare, _ = median_seconds(BARE, runs)
    full, full_size = median_seconds(PLAN.format(path="grids/full.yaml", sets=[]) + COUNT, runs)
    large, large_size = median_seconds(PLAN.format(path="grids/full.yaml", sets=[f"seeds={seeds}"]) + COUNT, runs)
    command, _ = median_seconds(
        "import sys; sys.argv = ['cft-ray', 'plan', 'grids/full.yaml']\nfrom cft_ray.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code",
        runs,
    )
    figures = {
        "runs": runs,
        "bare_import_pydantic_yaml_seconds": round(bare, 3),
        "full_cells_stages": full_size.split(),
        "full_seconds": round(full, 3),
        "full_share_of_bound": round(full / FULL_BOUND_SECONDS, 3),
        "full_over_bare_import": round(full / bare, 2),
        "full_command_seconds": round(command, 3),
        "full_command_share_of_bound": round(command / FULL_BOUND_SECONDS, 3),
        "large_cells_stages": large_size.split(),
        "large_seconds": round(large, 3),
        "large_share_of_bound": round(large / LARGE_BOUND_SECONDS, 3),
        "large_over_bare_import": round(large / bare, 2),
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    record("plan", f"python benchmarks/plan.py --runs {runs}", figures)


if __name__ == "__main__":
    main()
