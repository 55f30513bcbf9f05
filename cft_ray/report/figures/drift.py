"""Drift heat map: how far Phase 1 moved each head of the query, key and value projections, and what was then frozen.

A square is one head's slice in one layer, its colour the Frobenius norm of W_phase1 − W_base there (table `similarity`,
`l2` with a head). Dots mark the slices that a strategy froze in Phase 2, as its training says in `stages.outputs`: LF_H2
takes the largest of each column, LF_H1 whole layers at random.
"""

import json
from dataclasses import dataclass

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cft_ray.report.figures import style
from cft_ray.report.tables import GridTables, NothingToDraw

ROLE = "insight:drift:base-phase1"
PROJECTIONS = {"q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True)
class Frozen:
    """What a training left as it was: whole decoder blocks, and (projection, head, layer) outside of those."""

    blocks: frozenset[int]
    heads: frozenset[tuple[str, int, int]]

    def __contains__(self, slice_: tuple[str, int, int]) -> bool:
        return slice_[2] in self.blocks or slice_ in self.heads

    def __bool__(self) -> bool:
        return bool(self.blocks or self.heads)


def frozen(outputs: dict) -> Frozen:
    """Read from the outputs of a training (`cft_ray.strategies.frozen.frozen_facts`); nothing where they say nothing."""
    facts = outputs.get("strategy", {})
    heads = {
        (projection, int(head), layer)
        for projection, layers_of in facts.get("frozen_heads", {}).items()
        for head, layers in layers_of.items()
        for layer in layers
    }
    return Frozen(frozenset(facts.get("frozen_blocks", ())), frozenset(heads))


def draw(tables: GridTables) -> dict[str, Figure]:
    """A file per model and Phase 1; a row for each strategy that froze something, columns are projections.

    Raises:
        NothingToDraw: there are no norms by head.
    """
    rows = tables.measured(ROLE, "l2").filter(pl.col("head").is_not_null() & pl.col("projection").is_in(list(PROJECTIONS)))
    if rows.is_empty():
        raise NothingToDraw("no rows l2 by head of base and Phase 1 in the table similarity (stage drift)")
    drawn: dict[str, Figure] = {}
    for (model, phase1), own in rows.group_by("model", "phase1", maintain_order=True):
        norms = own.filter(pl.col("stage") == own["stage"][0])  # the first seed's
        title = f"{model}: what Phase 1 on {phase1} changed, Frobenius norm of W_phase1 − W_base a head"
        drawn[f"drift_{model}_{phase1}"] = _figure(title, norms.unique(["projection", "head", "layer"]), _marks(tables, norms))
    return drawn


def _marks(tables: GridTables, norms: pl.DataFrame) -> dict[str, Frozen]:
    """Strategy -> what it froze; strategies that froze the same are one; one without a name where none froze anything."""
    marks: dict[str, Frozen] = {}
    for cell, strategy, settings in norms.select("cell", "strategy", "settings").unique(maintain_order=True).iter_rows():
        found = frozen(tables.outputs(cell, "phase2"))
        if found and found not in marks.values():
            swept = "".join(f" {path.rpartition('.')[2]}={value}" for path, value in json.loads(settings).items())
            marks[f"{strategy}{swept}"] = found
    return marks or {"": Frozen(frozenset(), frozenset())}


def _figure(title: str, norms: pl.DataFrame, marks: dict[str, Frozen]) -> Figure:
    layers = int(max(norms["layer"])) + 1
    heads = {name: int(max(own)) + 1 for name in PROJECTIONS if len(own := norms.filter(pl.col("projection") == name)["head"])}
    scale = Normalize(0.0, float(max(norms["value"])))
    tall = min(3.4, max(1.6, 0.11 * layers + 0.7))
    canvas = style.figure(0.9 + tall * len(marks))
    widths = [max(count, max(heads.values()) / 3) for count in heads.values()]  # few key heads still need room for labels
    grid = style.panels(canvas, len(marks), len(heads), width_ratios=widths)
    for line, (strategy, chosen) in zip(grid, marks.items(), strict=True):
        for axes, (projection, count) in zip(line, heads.items(), strict=True):
            _panel(axes, norms.filter(pl.col("projection") == projection), chosen, scale, layers, count)
            axes.set_title(f"{PROJECTIONS[projection]}, {strategy}" if strategy else PROJECTIONS[projection])
            axes.set_xlabel("head" if projection == "q" else "KV head")
        line[0].set_ylabel("decoder layer")
    bar = canvas.colorbar(ScalarMappable(scale, style.MAP), ax=[axes for line in grid for axes in line], pad=0.01, aspect=30)
    bar.set_label("Frobenius norm of the change (weights)")
    if any(marks.values()):
        style.legend(canvas, [_dot(label="frozen in Phase 2")])
    canvas.suptitle(title)
    return canvas


def _panel(axes: Axes, rows: pl.DataFrame, marks: Frozen, scale: Normalize, layers: int, heads: int) -> None:
    values = np.full((layers, heads), np.nan)
    values[rows["layer"], rows["head"]] = rows["value"]
    axes.imshow(values, cmap=style.MAP, norm=scale, origin="lower", aspect="auto", interpolation="nearest")
    projection = rows["projection"][0]
    dots = [(head, layer) for layer in range(layers) for head in range(heads) if (projection, head, layer) in marks]
    if dots:
        area = min(26.0, 1400.0 / max(layers * 3, heads * 4))
        axes.scatter(*zip(*dots, strict=True), s=area, facecolor="white", edgecolor="black", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _dot(label: str) -> Line2D:
    return Line2D([], [], marker="o", linestyle="", markerfacecolor="white", markeredgecolor="black", markersize=5, label=label)
