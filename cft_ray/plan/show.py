"""A plan in the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cft_ray.data.accounts import RowAccount, percent, words
from cft_ray.errors import UserError, without_secrets
from cft_ray.grid.schema import Grid
from cft_ray.output import fitted
from cft_ray.plan.estimate import Estimate
from cft_ray.plan.memory import TrainingMemory
from cft_ray.plan.stage import Plan, Stage
from cft_ray.plan.view import PlanView, as_json, stored, view
from cft_ray.plan.why import Artifact

__all__ = ["as_json", "show", "stored"]

_MOST_ROWS = 60


def show(
    plan: Plan,
    grid: Grid,
    console: Console,
    artifacts: Iterable[Artifact] | None = None,
    *,
    rows: Mapping[str, RowAccount] | None = None,
    lacks: Sequence[UserError] = (),
) -> None:
    """Print cells, unique stages, what is shared, what is cached or new and why, and what it will take.

    Args:
        plan: of ``grid``.
        grid: names device, price and storage.
        console: where to.
        artifacts: what exists; none: what the grid's storage holds.
        rows: fingerprint -> account of the data sets that were read while planning.
        lacks: what a run would be refused for (`cft_ray.lacks`).
    """
    seen = view(plan, grid, artifacts)
    console.print(fitted(_cells(seen), console))
    console.print(fitted(_kinds(seen), console))
    shared = _shared(seen)
    if shared.row_count:
        console.print(fitted(shared, console))
    if any(reason.status == "cached" for reason in seen.reasons.values()):
        console.print(fitted(_new(seen), console))
    if rows:
        console.print(fitted(_rows(plan, rows), console))
    trainings, memory = _trainings(seen)
    if trainings.row_count:
        console.print(fitted(trainings, console))
    if len(memory.columns) > 1:
        console.print(fitted(memory, console))
    console.print(_assumptions(seen), style="dim")
    for warning in seen.warnings:
        console.print(f"[yellow]note:[/yellow] {warning}")
    for error in lacks:
        text = f"a run would be refused: {without_secrets(str(error))}"
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, text: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """A table that stays readable in 80 columns."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in text:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _cells(seen: PlanView) -> Table:
    plan = seen.plan
    table = _table(f"{plan.grid}: {len(plan.cells)} cells", ("model", "phase 1", "phase 2", "strategies"), ("cells", "to do"))
    groups: dict[tuple[str, str, str], list[tuple[str, bool]]] = {}
    for cell in plan.cells:
        done = all(seen.reasons[fingerprint].status != "new" for fingerprint in cell.roles.values())
        groups.setdefault((cell.model, cell.phase1, cell.phase2), []).append((cell.strategy, done))
    for (model, phase1, phase2), members in list(groups.items())[:_MOST_ROWS]:
        names = dict.fromkeys(strategy for strategy, _ in members)
        undone = sum(not done for _, done in members)
        table.add_row(model, phase1, phase2, " ".join(names), str(len(members)), str(undone))
    if len(groups) > _MOST_ROWS:
        table.add_row(f"… {len(groups) - _MOST_ROWS} more")
    return table


def _kinds(seen: PlanView) -> Table:
    kinds = seen.kinds()
    title = f"{len(seen.plan.stages)} unique stages ({sum(kind.alone for kind in kinds)} if every cell ran alone)"
    currency = seen.grid.cluster.currency
    table = _table(title, ("kind",), ("unique", "cached", "new", "tokens", "FLOPs", "GB", "dev-hours", currency))
    for kind in kinds:
        new = kind.unique - kind.cached - kind.skipped
        more = "+?" if 0 < kind.unknown < new else ""
        table.add_row(
            kind.kind,
            str(kind.unique),
            str(kind.cached),
            str(new),
            *(_number(value) + more for value in (kind.tokens, kind.flops)),
            _memory(kind.memory_bytes),
            *(_number(value) + more for value in (kind.device_hours, kind.money)),
        )
    return table


def _rows(plan: Plan, rows: Mapping[str, RowAccount]) -> Table:
    table = _table("rows of local data sets", ("data set",), ("in", "used", "left out", "share"))
    table.add_column("why", overflow="fold")
    for fingerprint, account in rows.items():
        aside = [f"{count:,} {words(reason)}" for reason, count in account.set_aside.items()]
        why = "; ".join(part for part in (account.reasons(), ", ".join(aside)) if part)
        numbers = (f"{account.came:,}", f"{account.used:,}", f"{account.lost:,}", percent(account.lost, account.wanted))
        table.add_row(plan.stages[fingerprint].label, *numbers, why)
    return table


def _shared(seen: PlanView) -> Table:
    table = _table("most shared", ("stage", "kind"), ("cells",))
    costly = {"finetune", "replay", "drift"}
    shared = [
        (seen.uses[fingerprint], stage)
        for fingerprint, stage in seen.plan.stages.items()
        if seen.uses[fingerprint] > 1 and stage.kind in costly
    ]
    for uses, stage in sorted(shared, key=lambda item: -item[0])[:12]:
        table.add_row(stage.label, stage.kind, str(uses))
    return table


def _new(seen: PlanView) -> Table:
    table = _table("why new", ("stage", "kind", "why"))
    new = [
        (stage, seen.reasons[fingerprint])
        for fingerprint, stage in seen.plan.stages.items()
        if seen.reasons[fingerprint].status == "new"
    ]
    for stage, reason in new[:_MOST_ROWS]:
        table.add_row(stage.label, stage.kind, str(reason))
    if len(new) > _MOST_ROWS:
        table.add_row(f"… {len(new) - _MOST_ROWS} more", "", "(all of them: --json)")
    return table


def _trainings(seen: PlanView) -> tuple[Table, Table]:
    """What a training takes, and the memory of its devices part by part; like trainings are shown once."""
    trainings = _table("trainings to do", ("training",), ("alike", "workers", "steps", "tokens", "FLOPs", "hours"))
    memory = _table("memory of each device in GB, all weights trained", ("training",), ())
    like: dict[tuple[object, ...], list[tuple[Stage, Estimate]]] = {}
    for fingerprint, stage in seen.plan.stages.items():
        estimate = seen.estimates[fingerprint]
        if stage.kind == "finetune" and seen.reasons[fingerprint].status == "new":
            like.setdefault((stage.resources.workers, estimate), []).append((stage, estimate))
    columns: dict[TrainingMemory, str] = {}
    for members in list(like.values())[:_MOST_ROWS]:
        stage, estimate = members[0]
        hours = estimate.seconds / 3600 if estimate.seconds is not None else None
        trainings.add_row(
            stage.label,
            str(len(members)),
            str(stage.resources.workers),
            *(_number(value) for value in (estimate.steps, estimate.tokens, estimate.flops, hours)),
        )
        if estimate.memory is not None:
            columns.setdefault(estimate.memory, stage.label)
    shown = list(columns.items())[:4]
    for _, label in shown:
        memory.add_column(label, justify="right")
    for part in (field.name for field in fields(TrainingMemory)):
        memory.add_row(part, *(_memory(getattr(parts, part)) for parts, _ in shown))
    memory.add_row("together", *(_memory(parts.total) for parts, _ in shown), style="bold")
    return trainings, memory


def _assumptions(seen: PlanView) -> str:
    cluster = seen.grid.cluster
    device = (
        f"{cluster.device} at {cluster.mfu:.0%} of its peak" if cluster.device else "no device named (`cluster`), so no times"
    )
    hourly = cluster.price_per_device_hour
    price = "" if hourly is None else f"; {hourly:g} {cluster.currency} an hour"
    return (
        f"Of what is new, ? where something is unknown. GB on each device; hours of one device: {device}{price}. "
        f"{cluster.characters_per_token:g} characters a token; replayed answers at full length."
    )


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _memory(value: float | None) -> str:
    return "?" if value is None else f"{value / 1e9:.1f}" if value >= 5e7 else f"{value / 1e9:.2g}"
