"""Figure 1: t-SNE of the layers' mean activations, Phase 1 and Phase 2 models of all pairs in one picture.

A point is one layer of one model: its mean hidden activation over the prompts. Where Phase 2 keeps what Phase 1 made,
its chain of layers lies on that of Phase 1. Colour tells Phase 1's data; hollow is before Phase 2, filled after it.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from cft_ray.metrics.cells import PHASES
from cft_ray.report.figures import style, tsne
from cft_ray.report.tables import GridTables, NothingToDraw

ROLE = "insight:activations:"


@dataclass(frozen=True)
class _Chain:
    """One model's layers."""

    legend: str
    colour: str
    marker: str
    hollow: bool
    layers: list[int]
    means: np.ndarray
    """[layers, dimensions]"""


def draw(tables: GridTables) -> dict[str, Figure]:
    """A panel for each model of the grid.

    Raises:
        NothingToDraw: there are no activations of a Phase 1 and a Phase 2 model.
    """
    found = {model: _chains(tables, model) for model in tables.models}
    found = {model: chains for model, chains in found.items() if sum(len(one.layers) for one in chains) >= tsne.LEAST}
    if not found:
        raise NothingToDraw("no rows of Phase 1 and Phase 2 models in the table layers (stage activations)")
    canvas = style.figure(4.6 if len(found) == 1 else 4.4, style.WIDTH if len(found) > 1 else 5.2)
    for axes, (model, chains) in zip(style.panels(canvas, 1, len(found))[0], found.items(), strict=True):
        _panel(axes, model, chains)
    handles = {one.legend: _handle(one) for chains in found.values() for one in chains}
    style.legend(canvas, list(handles.values()), columns=3 if len(found) > 1 else 2)
    canvas.suptitle("Mean activations of each layer,\nbefore and after Phase 2 (numbers: first and last layer)")
    return {"figure_1_layer_means": canvas}


def _chains(tables: GridTables, model: str) -> list[_Chain]:
    chains: dict[str, _Chain] = {}
    cells = tables.plain_cells().filter(pl.col("model") == model)
    firsts = cells["phase1"].unique(maintain_order=True).to_list()
    rows = {phase: tables.layer_means(ROLE + phase).filter(pl.col("language").is_null()) for phase in PHASES}
    for number, (cell, phase1, pair) in enumerate(cells.select("cell", "phase1", "pair").iter_rows()):
        colour = style.COLOURS[1 + firsts.index(phase1) % (len(style.COLOURS) - 1)]  # black is the base's
        before, after = (style.MARKERS[index % len(style.MARKERS)] for index in (firsts.index(phase1), len(firsts) + number))
        looks = {
            "base": ("base", style.COLOURS[0], "*", False),
            "phase1": (f"after Phase 1: {phase1}", colour, before, True),
            "phase2": (f"after Phase 2: {pair}", colour, after, False),
        }
        for phase, (legend, paint, marker, hollow) in looks.items():
            own = rows[phase].filter(pl.col("cell") == cell).sort("layer")
            if own.height:
                means = np.asarray(own["mean"].to_list(), dtype=np.float64)
                stage = own["stage"][0]
                chains.setdefault(stage, _Chain(legend, paint, marker, hollow, own["layer"].to_list(), means))
    return list(chains.values())


def _panel(axes: Axes, model: str, chains: list[_Chain]) -> None:
    points = tsne.embed(np.concatenate([one.means for one in chains]))
    places = np.split(points, np.cumsum([len(one.layers) for one in chains])[:-1])
    for one, place in zip(chains, places, strict=True):
        axes.plot(*place.T, color=one.colour, linewidth=0.5, alpha=0.6, zorder=1)
        axes.scatter(
            *place.T,
            s=34 if one.hollow else 20,
            marker=one.marker,
            facecolor="none" if one.hollow else one.colour,
            edgecolor=one.colour,
            zorder=3 if one.hollow else 2,
        )
        for index in (0, -1):
            axes.annotate(
                str(one.layers[index]),
                place[index],
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
                color=one.colour,
                zorder=5,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
    tsne.bare(axes)
    axes.margins(0.08)
    axes.set_title(f"{model}: {len(points)} points, perplexity {tsne.perplexity(len(points)):.3g}")


def _handle(one: _Chain) -> Line2D:
    face = "none" if one.hollow else one.colour
    return Line2D(
        [], [], color=one.colour, marker=one.marker, markerfacecolor=face, markersize=5, linewidth=0.5, label=one.legend
    )
