"""What a plan says, as plain values: counts, sharing, what is cached, why the rest is new, what it will take.

`cft_ray.plan.show` prints it; ``--json`` is `as_json`. Reading the storage changes nothing in it.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cft_ray.data.accounts import RowAccount
from cft_ray.errors import UserError
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.cells import cells
from cft_ray.grid.schema import Grid
from cft_ray.plan import context
from cft_ray.plan.build import unresolved
from cft_ray.plan.estimate import Estimate, estimate_plan, too_large
from cft_ray.plan.insight import notes
from cft_ray.plan.sources import fetched_of
from cft_ray.plan.specs import SPECS
from cft_ray.plan.stage import Plan, skips
from cft_ray.plan.why import Artifact, Reason, explain
from cft_ray.storage.location import local_path


@dataclass(frozen=True)
class KindSummary:
    """The stages of one kind."""

    kind: str
    alone: int
    """stages, if every cell ran by itself"""
    unique: int
    cached: int
    skipped: int
    """not to be run: the grid lacks what they need"""
    tokens: float | None
    """of the new stages together; None if none of them is known"""
    flops: float | None
    device_hours: float | None
    money: float | None
    memory_bytes: float | None
    """on each device, of the largest"""
    unknown: int
    """new stages whose time is not known"""


@dataclass(frozen=True)
class PlanView:
    """A plan beside what exists and what it will take."""

    plan: Plan
    grid: Grid
    reasons: Mapping[str, Reason]
    estimates: Mapping[str, Estimate]
    uses: Mapping[str, int]
    """fingerprint -> cells that need the stage"""
    warnings: tuple[str, ...]

    def kinds(self) -> list[KindSummary]:
        """One summary per kind that occurs, in the order of the work."""
        return [self._kind(kind) for kind in SPECS if any(stage.kind == kind for stage in self.plan.stages.values())]

    def _kind(self, kind: str) -> KindSummary:
        stages = [fingerprint for fingerprint, stage in self.plan.stages.items() if stage.kind == kind]
        status = Counter(self.reasons[fingerprint].status for fingerprint in stages)
        new = [self.estimates[fingerprint] for fingerprint in stages if self.reasons[fingerprint].status == "new"]
        return KindSummary(
            kind=kind,
            alone=sum(self.uses[fingerprint] for fingerprint in stages),
            unique=len(stages),
            cached=status["cached"],
            skipped=status["skipped"],
            tokens=_sum(estimate.tokens for estimate in new),
            flops=_sum(estimate.flops for estimate in new),
            device_hours=_sum(estimate.device_hours for estimate in new),
            money=_sum(estimate.money for estimate in new),
            memory_bytes=max((estimate.memory_bytes for estimate in new if estimate.memory_bytes is not None), default=None),
            unknown=sum(estimate.seconds is None for estimate in new) if kind in ("finetune", "replay", "evaluate") else 0,
        )


def view(plan: Plan, grid: Grid, artifacts: Iterable[Artifact] | None = None) -> PlanView:
    """Look at a plan.

    Args:
        plan: of ``grid``.
        grid: for the cluster's device and price, and for the storage.
        artifacts: what exists; none: what the grid's storage holds.

    Raises:
        UserError: the storage cannot be read.
    """
    estimates = estimate_plan(plan, grid)
    warnings = [
        f"data set {stage.label} is still to be supplied: {grid.datasets[stage.label].missing}" for stage in unresolved(plan)
    ]
    declared = ((choice.name, BENCHMARKS.get(choice.name)) for choice in grid.evaluation.benchmarks)
    warnings += [f"benchmark {name} cannot be run yet: {known.missing}" for name, known in declared if known and known.missing]
    warnings += skips(stage.skip for stage in plan.stages.values())
    warnings += plan.notes
    warnings += context.notes(grid, fetched_of(grid))
    warnings += notes(grid, cells(grid)) if grid.insight is not None else []
    large = (too_large(stage, estimates[fingerprint], grid) for fingerprint, stage in plan.stages.items())
    warnings += list(dict.fromkeys(text for text in large if text is not None))[:3]
    reasons = explain(plan, stored(grid) if artifacts is None else artifacts)
    return PlanView(plan, grid, reasons, estimates, _uses(plan), tuple(warnings))


def stored(grid: Grid) -> Iterable[Artifact]:
    """The manifests in the grid's storage; none where there is no such folder yet."""
    uri = grid.storage.uri
    if ":" not in uri and not uri.startswith("~") and uri.strip():  # what else is a folder, `Storage` knows
        with contextlib.suppress(PermissionError):  # which it puts into words
            if not (local_path(uri) / "artifacts").is_dir():
                return ()
    from cft_ray.artifacts.store import ArtifactStore
    from cft_ray.storage.root import Storage

    return ArtifactStore(Storage(uri)).manifests()


def as_json(
    plan: Plan,
    grid: Grid,
    artifacts: Iterable[Artifact] | None = None,
    *,
    rows: Mapping[str, RowAccount] | None = None,
    lacks: Sequence[UserError] = (),
) -> dict[str, Any]:
    """The whole plan as JSON values: cells, stages in topological order with reason and estimate, sums per kind.

    Args:
        plan: of ``grid``.
        grid: names device, price and storage.
        artifacts: what exists; none: what the grid's storage holds.
        rows: fingerprint -> account of the data sets that were read while planning.
        lacks: what a run would be refused for (`cft_ray.lacks`).
    """
    rows = rows or {}
    seen = view(plan, grid, artifacts)
    cluster = grid.cluster
    return {
        "grid": plan.grid,
        "assumptions": {
            "device": cluster.device,
            "mfu": cluster.mfu,
            "price_per_device_hour": cluster.price_per_device_hour,
            "currency": cluster.currency,
            "characters_per_token": cluster.characters_per_token,
        },
        "kinds": [asdict(kind) for kind in seen.kinds()],
        "warnings": list(seen.warnings),
        "lacks": [{"what": error.what, "where": error.where, "fix": error.fix} for error in lacks],
        "cells": [cell.to_json() for cell in plan.cells],
        "stages": [
            {
                "fingerprint": fingerprint,
                "kind": stage.kind,
                "label": stage.label,
                "inputs": dict(stage.inputs),
                "resources": vars(stage.resources),
                "cells": seen.uses[fingerprint],
                "status": seen.reasons[fingerprint].status,
                "why": str(seen.reasons[fingerprint]),
                "nearest": seen.reasons[fingerprint].nearest,
                "estimate": asdict(seen.estimates[fingerprint]),
                "rows": rows[fingerprint].model_dump() if fingerprint in rows else None,
            }
            for fingerprint, stage in plan.stages.items()
        ],
    }


def _uses(plan: Plan) -> dict[str, int]:
    uses: Counter[str] = Counter(dict.fromkeys(plan.stages, 0))
    for cell in plan.cells:
        needed: set[str] = set()
        waiting = list(cell.roles.values())
        while waiting:
            fingerprint = waiting.pop()
            if fingerprint not in needed:
                needed.add(fingerprint)
                waiting += plan.stages[fingerprint].inputs.values()
        uses.update(needed)
    return uses


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
