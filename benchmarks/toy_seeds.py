"""What the smoke grid shows, and how much of it is chance: the same grid under several seeds and CPU instruction sets.

    python benchmarks/toy_seeds.py --seeds 5

Each run is `cft-ray run` on an empty storage. A seed is that of everything drawn in a run (the base's weights, the order of
every training, replay), where a grid's own `seeds` leave the given checkpoints as they are. The data stay the same. An
instruction set is forced on PyTorch, oneDNN and MKL by their environment variables, with the first seed: it changes the
last bits of sums, and nothing else. Reported for each cell: mean, standard deviation over seeds and a 95 % interval of the
mean (Student's t), the same for the difference to the pair's `none` (paired by seed), and the range over instruction sets.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import ROOT, record

INSTRUCTIONS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}
NATIVE = "native"
"""what the libraries choose themselves"""
SCORES = ("ta_phase1", "ta_phase2", "ta_change", "la_phase1", "la_phase2", "la_change")
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""number of values -> 97.5 % quantile of Student's t for the interval of their mean"""

Cells = dict[str, dict[str, float]]
"""``pair strategy`` -> score -> value"""


def reseeded(plan: Any, seed: int) -> Any:
    """The plan with another seed in every training and replay; data sets and sampled test items stay."""
    from cft_ray.plan.specs import FinetuneSpec, ReplaySpec

    renamed: dict[str, str] = {}
    stages = {}
    for key, stage in plan.stages.items():
        drawn = isinstance(stage.spec, FinetuneSpec | ReplaySpec)
        spec = stage.spec.model_copy(update={"seed": seed}) if drawn else stage.spec
        inputs = {role: renamed[source] for role, source in stage.inputs.items()}
        new = dataclasses.replace(stage, spec=spec, inputs=inputs)
        renamed[key] = new.fingerprint
        stages[new.fingerprint] = new
    cells = [
        dataclasses.replace(cell, roles={role: renamed[source] for role, source in cell.roles.items()}) for cell in plan.cells
    ]
    return dataclasses.replace(plan, stages=stages, cells=tuple(cells))


def one(grid: str, sets: list[str], seed: int, storage: str) -> Cells:
    """Run the grid in this process, and read its results."""
    import cft_ray
    from cft_ray.execute.run import run
    from cft_ray.grid.schema import load_grid
    from cft_ray.plan.build import build

    plan = reseeded(build(load_grid(Path(grid), [*sets, f"storage.uri={storage}"])), seed)
    outcome = run(plan, storage)
    if outcome.exit_code:
        sys.exit(outcome.exit_code)
    summary = cft_ray.open(storage).summary().collect()
    return {
        f"{row['model']} {row['pair']} {row['strategy']}": {score: row[score] for score in SCORES} for row in summary.to_dicts()
    }


def separate(grid: str, sets: list[str], seed: int, instructions: str, kept: Path | None) -> Cells:
    """The same in a process of its own, under an instruction set; what a folder keeps of an earlier run is not run again."""
    there = None if kept is None else kept / f"{seed}-{instructions}.json"
    if there is not None and there.exists():
        return json.loads(there.read_text())
    with tempfile.TemporaryDirectory(prefix="cft-ray-seeds-") as folder:
        result = Path(folder) / "cells.json"
        command = [sys.executable, __file__, "--grid", grid, "--one", str(seed), "--storage", f"{folder}/storage"]
        command += ["--result", str(result), *(part for each in sets for part in ("--set", each))]
        environment = os.environ | INSTRUCTIONS.get(instructions, {}) | {"HF_HUB_OFFLINE": "1"}
        start = time.monotonic()
        subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=True)
        cells: Cells = json.loads(result.read_text())
        if there is not None:
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(result, there)
    print(f"seed {seed}, {instructions}: {time.monotonic() - start:.0f} s", flush=True)
    return cells


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation, half the width of the mean's 95 % interval, least and greatest."""
    found = {"mean": statistics.fmean(values), "least": min(values), "greatest": max(values)}
    if len(values) > 1:
        deviation = statistics.stdev(values)
        quantile = T_975.get(len(values), 1.96)
        found |= {"sd": deviation, "interval": quantile * deviation / math.sqrt(len(values))}
    return {name: round(value, 4) for name, value in found.items()}


def compared(by_seed: dict[int, Cells], by_instructions: dict[str, Cells]) -> dict[str, Any]:
    """Figures of each cell."""
    first = next(iter(by_seed.values()))
    figures: dict[str, Any] = {}
    for cell in first:
        none = f"{cell.rpartition(' ')[0]} none"
        figures[cell] = {
            score: {
                "over_seeds": spread([cells[cell][score] for cells in by_seed.values()]),
                "over_none": spread([cells[cell][score] - cells[none][score] for cells in by_seed.values()]),
                "range_over_instruction_sets": round(
                    max(cells[cell][score] for cells in by_instructions.values())
                    - min(cells[cell][score] for cells in by_instructions.values()),
                    4,
                ),
            }
            for score in SCORES
        }
    return figures


def table(figures: dict[str, Any]) -> str:
    """Markdown: mean ± interval over seeds, and in brackets the range over instruction sets."""
    columns = ("ta_phase1", "ta_phase2", "la_phase1", "la_phase2")
    lines = ["| cell | TA 1 | TA 2 | LA 1 | LA 2 |", "| --- | --- | --- | --- | --- |"]
    for cell, scores in figures.items():
        shown = []
        for score in columns:
            seeds = scores[score]["over_seeds"]
            half = f" ± {seeds['interval']:.2f}" if "interval" in seeds else ""
            shown.append(f"{seeds['mean']:.2f}{half} ({scores[score]['range_over_instruction_sets']:.2f})")
        lines.append(f"| {' | '.join([cell, *shown])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="the smoke grid under several seeds and CPU instruction sets")
    parser.add_argument("--grid", default="grids/smoke.yaml")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="PATH=VALUE", help="as of cft-ray run")
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, …")
    parser.add_argument("--instructions", nargs="*", default=["default", "avx2", "avx512"], choices=list(INSTRUCTIONS))
    parser.add_argument(
        "--kept", type=Path, help="folder for the cells of each run, to go on after a stop; for one grid and commit"
    )
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        arguments.result.write_text(json.dumps(one(arguments.grid, arguments.sets, arguments.one, arguments.storage)))
        return
    by_seed = {seed: separate(arguments.grid, arguments.sets, seed, NATIVE, arguments.kept) for seed in range(arguments.seeds)}
    by_instructions = {NATIVE: by_seed[0]}
    for name in arguments.instructions:
        by_instructions[name] = separate(arguments.grid, arguments.sets, 0, name, arguments.kept)
    figures = compared(by_seed, by_instructions)
    command = f"python benchmarks/toy_seeds.py --grid {arguments.grid} --seeds {arguments.seeds}"
    command += "".join(f" --set {each}" for each in arguments.sets)
    command += f" --instructions {' '.join(arguments.instructions)}"
    values = {"by_seed": by_seed, "by_instruction_set": by_instructions}
    print(table(figures), record("toy_seeds", command, {"cells": figures, **values}), sep="\n")


if __name__ == "__main__":
    main()
