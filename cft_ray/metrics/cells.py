"""The `cells` table: which stage plays which role in which cell. It is what ties a stage's rows to the grid. Pure."""

import hashlib
import json
import time
from typing import Any

from cft_ray.plan.stage import Plan

PHASES = ("base", "phase1", "phase2")
"""model roles in order: phase i is the model after i fine-tunings"""


def cell_rows(plan: Plan) -> list[dict[str, Any]]:
    """One row per cell and role of a plan, for the `cells` table."""
    skipped = {fingerprint: stage.skip for fingerprint, stage in plan.stages.items()}
    return [
        {
            "grid": plan.grid,
            "cell": cell.cell,
            "model": cell.model,
            "phase1": cell.phase1,
            "phase2": cell.phase2,
            "strategy": cell.strategy,
            "seed": cell.seed,
            "settings": json.dumps(dict(cell.settings), sort_keys=True, ensure_ascii=False),
            **_role(role),
            "stage": stage,
            "skipped": skipped.get(stage),
        }
        for cell in plan.cells
        for role, stage in cell.roles.items()
    ]


def cells_key(plan: Plan) -> dict[str, Any]:
    """The key for `Reporter.append("cells", cell_rows(plan), **cells_key(plan))`: every run of a grid is an attempt.

    The attempt is the time in milliseconds, so that the last run of a cell is the one that counts.
    """
    grid = hashlib.sha256(plan.grid.encode()).hexdigest()
    return {"fingerprint": grid, "attempt": time.time_ns() // 1_000_000, "sequence": 0}


def _role(role: str) -> dict[str, str | None]:
    """``phase2`` and ``phase2:TA:ifeval`` taken apart; any other role keeps its name only."""
    phase, *rest = role.split(":", 2)
    if phase not in PHASES or len(rest) == 1:
        return {"role": role, "phase": None, "ability": None, "benchmark": None}
    ability, benchmark = rest or (None, None)
    return {"role": role, "phase": phase, "ability": ability, "benchmark": benchmark}
