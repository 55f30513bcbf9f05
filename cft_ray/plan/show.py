"""A plan in the terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from cft_ray.grid.schema import Grid
from cft_ray.plan.stage import Plan
from cft_ray.plan.view import PlanView, as_json, view
from cft_ray.plan.why import Artifact

__all__ = ["as_json", "show"]

_MOST_ROWS = 60


def show(plan: Plan, grid: Grid, console: Console, artifacts: Iterable[Artifact] | None = None) -> None:
    """Print cells, unique stages, what is shared, what is cached or new and why, and what it will take.

    Args:
        plan: of ``grid``.
        grid: names device, price and storage.
        console: where to.
        artifacts: what exists; none: what the grid's storage holds.
    """
    seen = view(plan, grid, artifacts)
    console.print(_cells(seen))
    console.print(_kinds(seen))
    shared = _shared(seen)
    if shared.row_count:
        console.print(shared)
    if any(reason.status == "cached" for reason in seen.reasons.values()):
        console.print(_new(seen))
    trainings = _trainings(seen)
    if trainings.row_count:
        console.print(trainings)
    console.print(_assumptions(seen), style="dim")
    for warning in seen.warnings:
        console.print(f"[yellow]note:[/yellow] {warning}")


def _cells(seen: PlanView) -> Table:
    plan = seen.plan
    table = Table("model", "phase 1", "phase 2", "strategies", "cells", "to do", title=f"{plan.grid}: {len(plan.cells)} cells")
    groups: dict[tuple[str, str, str], list[tuple[str, bool]]] = {}
    for cell in plan.cells:
        done = all(seen.reasons[fingerprint].status == "cached" for fingerprint in cell.roles.values())
        groups.setdefault((cell.model, cell.phase1, cell.phase2), []).append((cell.strategy, done))
    for (model, phase1, phase2), members in list(groups.items())[:_MOST_ROWS]:
        names = dict.fromkeys(strategy for strategy, _ in members)
        undone = sum(not done for _, done in members)
        table.add_row(model, phase1, phase2, " ".join(names), str(len(members)), str(undone))
    if len(groups) > _MOST_ROWS:
        table.add_row(f"… {len(groups) - _MOST_ROWS} more", "", "", "", "", "")
    return table


def _kinds(seen: PlanView) -> Table:
    kinds = seen.kinds()
    unique = len(seen.plan.stages)
    alone = sum(kind.alone for kind in kinds)
    table = Table(title=f"{unique} unique stages ({alone} if every cell ran alone)")
    columns = ("kind", "alone", "unique", "cached", "new", "tokens", "FLOPs", "GB/device", "device-hours")
    for name in (*columns, seen.grid.cluster.currency):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in kinds:
        partly = kind.unknown and kind.unknown < kind.unique - kind.cached
        more = " + ?" if partly else ""
        table.add_row(
            kind.kind,
            str(kind.alone),
            str(kind.unique),
            str(kind.cached),
            str(kind.unique - kind.cached),
            _number(kind.tokens) + more,
            _number(kind.flops) + more,
            _memory(kind.memory_bytes),
            _number(kind.device_hours) + more,
            _number(kind.money) + more,
        )
    return table


def _shared(seen: PlanView) -> Table:
    table = Table("shared stage", "kind", "cells", title="most shared")
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
    table = Table("new stage", "kind", "why", title="why new")
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


def _trainings(seen: PlanView) -> Table:
    """One row per model and data size: what a training of it takes on each device."""
    table = Table(title="largest trainings, per device")
    parts = ("parameters", "gradients", "master", "moments", "gathered", "activations", "logits")
    for name in ("training", "workers", "steps", "tokens", *parts, "GB", "hours"):
        table.add_column(name, justify="left" if name == "training" else "right")
    rows: dict[tuple[object, ...], tuple[str, ...]] = {}
    for fingerprint, stage in seen.plan.stages.items():
        estimate = seen.estimates[fingerprint]
        memory = estimate.memory
        if stage.kind != "finetune" or memory is None or seen.reasons[fingerprint].status == "cached":
            continue
        key = (memory, estimate.steps, estimate.tokens)
        if key in rows:
            continue
        rows[key] = (
            stage.label,
            str(stage.resources.workers),
            _number(estimate.steps),
            _number(estimate.tokens),
            *(_memory(getattr(memory, part)) for part in parts),
            _memory(memory.total),
            _number(estimate.seconds / 3600 if estimate.seconds is not None else None),
        )
    for row in sorted(rows.values(), key=lambda row: row[0])[:12]:
        table.add_row(*row)
    return table


def _assumptions(seen: PlanView) -> str:
    cluster = seen.grid.cluster
    device = cluster.device or "no device named, so no times"
    price = (
        "no price" if cluster.price_per_device_hour is None else f"{cluster.price_per_device_hour:g} {cluster.currency} an hour"
    )
    return (
        f"Estimates of what is new, ? where something is unknown. {device}, {price}, at {cluster.mfu:.0%} of its peak; "
        f"{cluster.characters_per_token:g} characters a token; full training of all weights; replayed answers at full length."
    )


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _memory(value: float | None) -> str:
    return "?" if value is None else f"{value / 1e9:.1f}" if value >= 5e7 else f"{value / 1e9:.2g}"
