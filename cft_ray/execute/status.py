"""How far a grid is, from what lies in its storage: artifacts, leases and the `stages` table. Works while it runs."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cft_ray.artifacts.lease import holders
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.data.accounts import RowAccount
from cft_ray.execute.record import RecordedPlan, load_plan
from cft_ray.metrics.accounts import accounts, lines
from cft_ray.metrics.store import read_files
from cft_ray.output import fitted
from cft_ray.plan.stage import skips
from cft_ray.storage.root import Storage


@dataclass(frozen=True)
class StageStatus:
    """One stage of the plan last run.

    ``state``: ``done``, ``running`` (a lease is held), ``failed`` (its last attempt did), ``skipped`` (an ancestor
    failed, or the grid lacks what it needs: then ``skip`` says what), or ``waiting``.
    """

    fingerprint: str
    kind: str
    label: str
    state: str
    attempts: int
    seconds: float | None
    error: str | None
    skip: str | None
    rows: RowAccount | None = None
    """what became of the rows that it read"""


@dataclass(frozen=True)
class GridStatus:
    """All stages of the plan last run, in the plan's order, and how many cells have all their results."""

    grid: str
    storage: str
    started: str
    stages: tuple[StageStatus, ...]
    cells: int
    cells_complete: int

    def count(self, state: str) -> int:
        """How many stages are in a state."""
        return sum(stage.state == state for stage in self.stages)

    @property
    def complete(self) -> bool:
        """Everything is there that the grid can make."""
        return all(stage.state == "done" or stage.skip is not None for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        stages = [
            vars(stage) | {"rows": None if stage.rows is None else stage.rows.model_dump() | {"share_left_out": stage.rows.share}}
            for stage in self.stages
        ]
        return {**vars(self), "stages": stages}


def status(storage_uri: str, grid: str | None = None) -> GridStatus:
    """How far the last run of a grid is.

    Args:
        storage_uri: the grid's storage.
        grid: its name; None: the only one that was run there.

    Raises:
        UserError: no such grid was run there.
    """
    storage = Storage(storage_uri)
    plan = load_plan(storage, grid)
    store = ArtifactStore(storage)
    begun = set(store.listing())
    done = {key for _, key in store.present({(stage.kind, key) for key, stage in plan.stages.items()} & begun)}
    attempts = _last_attempts(storage)
    claimed = {entry.name.removesuffix(".json") for entry in storage.list("leases")}
    held = holders(storage, [key for key in plan.stages if key in claimed and key not in done])
    states: dict[str, str] = {}
    for key, stage in plan.stages.items():
        last = attempts.get(key)
        if key in done:
            states[key] = "done"
        elif key in held:
            states[key] = "running"
        elif stage.skip is not None or any(states[source] in ("failed", "skipped") for source in stage.inputs.values()):
            states[key] = "skipped"
        else:
            states[key] = "failed" if last and last["status"] == "failed" else "waiting"
    read = accounts(storage)
    stages = tuple(_stage(plan, key, state, attempts.get(key), read.get(key)) for key, state in states.items())
    there = {key for key, stage in plan.stages.items() if states[key] == "done" or stage.skip is not None}
    complete = sum(there.issuperset(cell["roles"].values()) for cell in plan.cells)
    return GridStatus(plan.grid, storage.uri, plan.started, stages, len(plan.cells), complete)


def _stage(plan: RecordedPlan, key: str, state: str, last: dict[str, Any] | None, rows: RowAccount | None) -> StageStatus:
    stage = plan.stages[key]
    return StageStatus(
        fingerprint=key,
        kind=stage.kind,
        label=stage.label,
        state=state,
        attempts=last["attempt"] if last else 0,
        seconds=last["seconds"] if last and state == "done" else None,
        error=last["error"] if last and state == "failed" else None,
        skip=stage.skip if state == "skipped" else None,
        rows=rows if state == "done" else None,
    )


def _last_attempts(storage: Storage) -> dict[str, dict[str, Any]]:
    """Fingerprint -> the newest row of `stages`."""
    columns = ["fingerprint", "attempt", "sequence", "status", "seconds", "error"]
    tables = [rows for _, rows in read_files(storage, "stages", columns)]
    if not tables:
        return {}
    rows = pa.concat_tables(tables).sort_by([("attempt", "ascending"), ("sequence", "ascending")])
    return {row["fingerprint"]: row for row in rows.to_pylist()}


_STYLES = {"done": "green", "running": "bold yellow", "failed": "bold red", "skipped": "red", "waiting": "dim"}


def show(found: GridStatus, console: Console, *, errors_whole: bool = False) -> None:
    """Print a status.

    Args:
        found: from `status`.
        console: where.
        errors_whole: with tracebacks instead of their first lines.
    """
    started = datetime.fromisoformat(found.started).astimezone().strftime("%Y-%m-%d %H:%M")
    console.print(Text(f"{found.grid} in {found.storage}, last started {started}", style="bold"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "state", "attempts", "seconds", "rows used"):
        table.add_column(column, justify="right" if column in ("attempts", "seconds", "rows used") else "left")
    for stage in found.stages:
        seconds = f"{stage.seconds:.1f}" if stage.seconds is not None else ""
        name = f"{stage.kind} {stage.label or stage.fingerprint[:12]}"
        rows = f"{stage.rows.used:,} of {stage.rows.came:,}" if stage.rows is not None else ""
        table.add_row(Text(name), Text(stage.state, style=_STYLES[stage.state]), str(stage.attempts or ""), seconds, rows)
    console.print(fitted(table, console))
    for stage in found.stages:
        if stage.error:
            text = stage.error if errors_whole else "\n".join(stage.error.splitlines()[:2])
            console.print(Text(f"✗ {stage.kind} {stage.label or stage.fingerprint[:12]}: {text}", style="red"))
    for text in lines((f"{stage.kind} {stage.label or stage.fingerprint[:12]}", stage.rows) for stage in found.stages):
        console.print(Text(text, style="yellow"))
    for text in skips(stage.skip for stage in found.stages):
        console.print(Text(text, style="yellow"))
    states = ", ".join(f"{count} {state}" for state in _STYLES if (count := found.count(state)))
    console.print(f"{len(found.stages)} stages: {states}; {found.cells_complete} of {found.cells} cells complete")
