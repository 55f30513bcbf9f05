"""``{storage}/runs/{grid}.json``: the plan last run, so that `status` works without the grid file."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cft_ray.errors import UserError
from cft_ray.plan.stage import Plan
from cft_ray.storage.root import Storage

LARGEST = 512 * 2**20
"""bytes; a plan of 10,000 cells has about 40 MiB"""


@dataclass(frozen=True)
class RecordedStage:
    """A stage of a plan that was run."""

    fingerprint: str
    kind: str
    label: str
    inputs: dict[str, str]
    cost: float
    skip: str | None
    """why it is not run, where the grid lacks what it needs"""


@dataclass(frozen=True)
class RecordedPlan:
    """A plan that was run: stages in the plan's order, and the cells as mappings."""

    grid: str
    started: str
    stages: dict[str, RecordedStage]
    cells: list[dict[str, Any]]


def save_plan(storage: Storage, plan: Plan) -> None:
    """Record a plan as the last run of its grid.

    Raises:
        UserError: the storage cannot be written to.
    """
    body = {
        "grid": plan.grid,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "stages": {key: stage.to_json() for key, stage in plan.stages.items()},
        "cells": [cell.to_json() for cell in plan.cells],
    }
    storage.write("runs", f"{_name(plan.grid)}.json", data=json.dumps(body).encode())


def recorded_grids(storage: Storage) -> list[str]:
    """Names of the grids that were run with this storage."""
    return sorted(entry.name.removesuffix(".json") for entry in storage.list("runs") if entry.name.endswith(".json"))


def load_plan(storage: Storage, grid: str | None = None) -> RecordedPlan:
    """The plan last run.

    Args:
        storage: where it was run.
        grid: its name; None: the only one there.

    Raises:
        UserError: there is none, there are several to choose from, or the record is damaged.
    """
    grids = recorded_grids(storage)
    if grid is None:
        if len(grids) != 1:
            what = f"{len(grids)} grids were run here: {', '.join(grids)}" if grids else "no grid was run here yet"
            raise UserError(what, where=storage.uri, fix="name one of them" if grids else "run one with `cft-ray run GRID`")
        grid = grids[0]
    data = storage.read("runs", f"{_name(grid)}.json", limit=LARGEST)
    if data is None:
        there = f"grids there: {', '.join(grids)}" if grids else "run it with `cft-ray run GRID`"
        raise UserError(f"the grid {grid!r} was not run here yet", where=storage.uri, fix=there)
    try:
        body = json.loads(data)
        stages = {
            key: RecordedStage(key, stage["kind"], stage["label"], stage["inputs"], stage["cost"], stage.get("skip"))
            for key, stage in body["stages"].items()
        }
        return RecordedPlan(body["grid"], body["started"], stages, body["cells"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        where = storage.location("runs", f"{grid}.json")
        raise UserError(f"the record of the run is damaged: {error}", where=where, fix="run the grid again") from error


def _name(grid: str) -> str:
    """A grid's name as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", grid).lstrip(".") or "grid"
