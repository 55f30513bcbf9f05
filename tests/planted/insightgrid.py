"""A grid's tables as the stages would leave them, with numbers that are known: no stage has run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cft_ray.metrics.cells import cell_rows, cells_key
from cft_ray.metrics.schemas import table_of
from cft_ray.metrics.store import Append, TableStore
from cft_ray.plan.stage import Plan, PlannedCell
from cft_ray.storage.root import Storage

GRID = "planted"
PAIRS = (("letters", "multi-letters"), ("instruct", "multi-letters"), ("numbers", "multi-numbers"), ("instruct", "multi-numbers"))
DES = {("letters", "multi-letters"): 0.93, ("numbers", "multi-numbers"): 0.88, ("instruct", "multi-letters"): 0.41}
DES[("instruct", "multi-numbers")] = 0.47
STRATEGIES = ("none", "LF_H1", "LF_H2", "GR_5", "GR_10", "LoRA", "ER_10")
LANGUAGES = ("en", "de", "es", "ru", "sw")
DIMENSIONS = 12
TRANSFER = {"none": 1.0, "LF_H1": 0.7, "LF_H2": 0.8, "GR_5": 0.5, "GR_10": 0.3, "LoRA": 0.2, "ER_10": 0.25}
"""what a strategy leaves of the forgetting"""


@dataclass(frozen=True)
class Shape:
    """How large the planted grid is."""

    models: tuple[str, ...] = ("mistral-toy",)
    pairs: int = 2
    strategies: tuple[str, ...] = ("none", "LF_H2", "GR_10")
    seeds: tuple[int, ...] = (0,)
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2


class _Planter:
    """Collects rows by table and writes each table once."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.random = np.random.default_rng(7)

    def put(self, table: str, stage: str, *rows: dict[str, Any]) -> None:
        self.rows.setdefault(table, {}).setdefault(stage, []).extend(rows)

    def stage(self, fingerprint: str, kind: str, label: str = "", **outputs: Any) -> str:
        if fingerprint not in self.rows.get("stages", {}):
            self.put(
                "stages",
                fingerprint,
                {"grid": GRID, "kind": kind, "label": label, "status": "done", "outputs": json.dumps(outputs)},
            )
        return fingerprint

    def write(self, folder: Path) -> None:
        for table, stages in self.rows.items():
            appends = [Append(stage, 1, 0, table_of(table, rows)) for stage, rows in stages.items()]
            TableStore(Storage(folder), table).commit(appends)


def plant(folder: Path, shape: Shape, without: frozenset[str] = frozenset()) -> None:
    """Write the tables of a grid.

    Args:
        folder: the storage.
        shape: its size.
        without: role prefixes that are left out, e.g. ``insight:des``; ``frozen``: strategies that froze nothing.
    """
    planter = _Planter()
    cells = []
    for model in shape.models:
        for phase1, phase2 in PAIRS[: shape.pairs]:
            for strategy in shape.strategies:
                for seed in shape.seeds:
                    roles = _cell(planter, shape, model, phase1, phase2, strategy, seed, frozenset(without))
                    roles = {role: stage for role, stage in roles.items() if not any(role.startswith(one) for one in without)}
                    name = f"{model}/{phase1}→{phase2}/{strategy}/{seed}"
                    cells.append(PlannedCell(name, model, phase1, phase2, strategy, seed, {}, roles))
    if "insight:des" in without:
        planter.rows["similarity"] = {
            stage: rows for stage, rows in planter.rows.get("similarity", {}).items() if not stage.startswith("des")
        }
    plan = Plan(GRID, {}, tuple(cells))
    key = cells_key(plan)
    planter.write(folder)
    TableStore(Storage(folder), "cells").commit([Append(key["fingerprint"], 1, 0, table_of("cells", cell_rows(plan)))])


def _cell(
    planter: _Planter, shape: Shape, model: str, phase1: str, phase2: str, strategy: str, seed: int, without: frozenset[str]
) -> dict[str, str]:
    p1, p2 = f"p1 {model} {phase1} {seed}", f"p2 {model} {phase1} {phase2} {strategy} {seed}"
    base = f"base {model}"
    facts = _frozen(shape, phase1, strategy) if "frozen" not in without else {}
    planter.stage(base, "finetune", base)
    planter.stage(p1, "finetune", f"{model} {phase1}")
    planter.stage(p2, "finetune", f"{model} {phase1}→{phase2} {strategy}", strategy=facts)
    roles = {"base": base, "phase1": p1, "phase2": p2}
    closeness, kept = DES[phase1, phase2], 1 - TRANSFER[strategy]
    roles["insight:des"] = _similarity(
        planter, f"des {phase1} {phase2}", "similarity", _des(planter, phase1, phase2, closeness), embedder="lexical"
    )
    drift = 2.0 * (1 - closeness) * TRANSFER[strategy] + 0.02 * seed
    roles["insight:drift:phase1-phase2"] = _similarity(
        planter, f"drift {p1} {p2}", "drift", [_row("mpd", p1, p2, drift), _row("l2", p1, p2, 3 * drift)]
    )
    roles["insight:drift:datasets"] = _similarity(
        planter, f"drift {model} {phase1} {phase2}", "drift", [_row("mpd", p1, phase2, 1.5 - closeness)]
    )
    roles["insight:drift:base-phase1"] = _similarity(planter, f"drift {base} {p1}", "drift", _heads(shape, phase1, p1, base))
    for role, scale in (("phase2", 0.9), ("english", 0.5)):
        rows = [_row("kl_answer", p1, p2, scale * drift), _row("kl_prompt", p1, p2, 2 * drift), _row("kl_all", p1, p2, drift)]
        roles[f"insight:kl:{role}"] = _similarity(planter, f"kl {role} {p2}", "divergence", rows)
    rows = [
        _row(f"covariance_{norm}", p1, p2, scale * drift * (1 + layer) ** 1.5, layer=layer)
        for norm, scale in (("frobenius", 4.0), ("spectral", 2.5))
        for layer in range(shape.layers)
    ]
    roles["insight:covariance:phase1-phase2"] = _similarity(planter, f"covariance {p2}", "covariance", rows)
    for phase, stage, moved in (("base", base, 0.0), ("phase1", p1, 0.6), ("phase2", p2, 0.6 + drift)):
        roles[f"insight:activations:{phase}"] = _activations(planter, shape, f"activations {stage}", stage, moved)
        roles[f"insight:parallel:{phase}"] = _activations(planter, shape, f"parallel {stage}", stage, moved, LANGUAGES)
    for phase, stage, change in (("base", base, 0.0), ("phase1", p1, 0.0), ("phase2", p2, -1.0)):
        for ability, benchmark, level in (("TA", "letters_test", 0.9), ("TA", "numbers_test", 0.8), ("LA", "multi_test", 0.3)):
            lost = change * (1 - closeness) * (1 - kept) * (1.0 if benchmark == "letters_test" else 0.5)
            score = {"ability": ability, "benchmark": benchmark, "task": benchmark, "language": "en", "metric": "acc"}
            name = f"score {benchmark} {stage}"
            if name not in planter.rows.get("scores", {}):
                planter.put("scores", name, {**score, "shown": True, "value": level + (lost if ability == "TA" else -lost)})
                planter.stage(name, "evaluate")
            roles[f"{phase}:{ability}:{benchmark}"] = name
    return roles


def _similarity(planter: _Planter, name: str, kind: str, rows: list[dict[str, Any]], **outputs: Any) -> str:
    if name not in planter.rows.get("similarity", {}):
        planter.put("similarity", name, *rows)
        planter.stage(name, kind, **outputs)
    return name


def _row(measure: str, left: str, right: str, value: float, **more: Any) -> dict[str, Any]:
    return {"measure": measure, "left": left, "right": right, "value": value, **more}


def _des(planter: _Planter, phase1: str, phase2: str, value: float) -> list[dict[str, Any]]:
    left, right = (planter.stage(f"data {name}", "dataset", name) for name in (phase1, phase2))
    rows = [("des", value), ("des_low", value - 0.02), ("des_high", value + 0.015)]
    return [_row(measure, left, right, number) for measure, number in rows] + [_row("des", left, right, 0.1, language="de")]


def _norm(phase1: str, projection: str, head: int, layer: int, layers: int) -> float:
    """Largest in one layer of each head, which wanders with the head."""
    peak = (3 * head + len(phase1) + {"q": 0, "k": 1, "v": 2}[projection]) % layers
    return 0.4 + 1.2 * np.exp(-(((layer - peak) / (0.2 * layers)) ** 2))


def _heads(shape: Shape, phase1: str, p1: str, base: str) -> list[dict[str, Any]]:
    rows = [_row("mpd", p1, base, 1.0), _row("l2", p1, base, 9.0)]
    return rows + [
        _row("l2", p1, base, _norm(phase1, projection, head, layer, shape.layers), layer=layer, projection=projection, head=head)
        for projection, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads))
        for head in range(heads)
        for layer in range(shape.layers)
    ]


def _frozen(shape: Shape, phase1: str, strategy: str) -> dict[str, Any]:
    few = max(1, shape.layers // 3)
    if strategy == "LF_H1":
        return {"frozen_blocks": list(range(0, shape.layers, 3))[:few], "frozen_heads": {}}
    if strategy != "LF_H2":
        return {}
    heads: dict[str, dict[str, list[int]]] = {}
    for projection, count in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
        for head in range(count):
            order = sorted(range(shape.layers), key=lambda layer: -_norm(phase1, projection, head, layer, shape.layers))
            heads.setdefault(projection, {})[str(head)] = sorted(order[:few])
    return {"frozen_blocks": [], "frozen_heads": heads}


def _activations(
    planter: _Planter, shape: Shape, name: str, model: str, moved: float, languages: tuple[str, ...] | None = None
) -> str:
    if name in planter.rows.get("layers", {}):
        return name
    direction = np.random.default_rng(len(model)).normal(size=DIMENSIONS)
    road = np.random.default_rng(1).normal(size=(2, DIMENSIONS))
    rows = []
    for number, language in enumerate(languages or (None,)):
        accent = np.random.default_rng(100 + number).normal(size=DIMENSIONS) * (number > 0)
        for layer in range(shape.layers):
            part = layer / max(shape.layers - 1, 1)
            mean = (
                road[0] * 6 * part
                + road[1] * 3 * np.sin(3 * part)
                + direction * moved * part
                + accent * (0.3 + (part - 0.5) ** 2)
            )
            rows.append({"model": model, "language": language, "layer": layer, "mean": mean.astype(np.float32), "n": 8})
    planter.put("layers", name, *({**row, "mean": row["mean"].tolist()} for row in rows))
    planter.stage(name, "activations")
    return name
