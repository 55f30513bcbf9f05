"""Figure D3: t-SNE of mean activations on parallel sentences, by language, before and after each phase.

A point is one layer and language of one model: the mean hidden activation over sentences that say the same in every
language. Languages whose points lie together are read alike. The three models of a pair are placed in one plane, so
their panels can be compared.
"""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cft_ray.metrics.cells import PHASES
from cft_ray.report.figures import style, tsne
from cft_ray.report.tables import GridTables, NothingToDraw

ROLE = "insight:parallel:"
TITLES = {"base": "base", "phase1": "after Phase 1", "phase2": "after Phase 2"}
SMALLEST, LARGEST = 6.0, 40.0
"""marker areas of the first and the last layer, square points"""


def draw(tables: GridTables) -> dict[str, Figure]:
    """A file per model; rows are pairs, columns the model before and after each phase.

    Raises:
        NothingToDraw: there are no activations on parallel sentences.
    """
    rows = pl.concat([tables.layer_means(ROLE + phase).with_columns(at=pl.lit(phase)) for phase in PHASES])
    rows = rows.filter(pl.col("language").is_not_null() & pl.col("cell").is_in(tables.plain_cells()["cell"].to_list()))
    rows = rows.filter(pl.len().over("cell") >= tsne.LEAST)
    if rows.is_empty():
        raise NothingToDraw("no rows by language in the table layers (stage activations, on parallel sentences)")
    languages = sorted(rows["language"].unique(), key=lambda code: (code != "en", code))  # English first: black
    looks = {language: style.series(number) for number, language in enumerate(languages)}
    return {
        f"figure_d3_languages_{model}": _model(model, mine, looks)
        for model in tables.models
        if (mine := rows.filter(pl.col("model") == model)).height
    }


def _model(model: str, rows: pl.DataFrame, looks: dict[str, style.Series]) -> Figure:
    phases = [phase for phase in PHASES if phase in set(rows["at"])]
    pairs = rows["pair"].unique(maintain_order=True).to_list()
    canvas = style.figure(1.2 + 2.3 * len(pairs))
    last = max(rows["layer"])
    for line, pair in zip(style.panels(canvas, len(pairs), len(phases), sharex="row", sharey="row"), pairs, strict=True):
        own = rows.filter(pl.col("pair") == pair)
        places = tsne.embed(np.asarray(own["mean"].to_list()))
        placed = own.with_columns(across=pl.Series(places[:, 0]), up=pl.Series(places[:, 1]))
        for axes, phase in zip(line, phases, strict=True):
            _panel(axes, placed.filter(pl.col("at") == phase), looks, last)
            axes.set_title(f"{pair}: {TITLES[phase]}" if phase != "base" else f"{pair}: base")
        for axes in line[1:]:
            axes.set_ylabel("")
        if pair != pairs[-1]:
            for axes in line:
                axes.set_xlabel("")
    style.legend(canvas, _handles(looks, last), columns=8)
    bound = tsne.perplexity(rows.height // len(pairs))
    canvas.suptitle(f"{model}: mean activations on parallel sentences, by language (perplexity {bound:.3g})")
    return canvas


def _panel(axes: Axes, rows: pl.DataFrame, looks: dict[str, style.Series], last: int) -> None:
    for language, look in looks.items():
        own = rows.filter(pl.col("language") == language).sort("layer")
        axes.plot(own["across"], own["up"], color=look.colour, linewidth=0.4, alpha=0.5, zorder=1)
        axes.scatter(
            own["across"],
            own["up"],
            s=[_area(layer, last) for layer in own["layer"]],
            marker=look.marker,
            facecolor=look.colour,
            edgecolor="white",
            linewidth=0.3,
            zorder=2,
        )
    tsne.bare(axes)


def _area(layer: int, last: int) -> float:
    return SMALLEST + (LARGEST - SMALLEST) * layer / max(last, 1)


def _handles(looks: dict[str, style.Series], last: int) -> list[Line2D]:
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="", markersize=5, label=language)
        for language, look in looks.items()
    ]
    for layer, word in ((0, "first"), (last, "last")):
        size = _area(layer, last) ** 0.5
        handles.append(
            Line2D([], [], color="#808080", marker="o", linestyle="", markersize=size, label=f"{word} layer ({layer})")
        )
    return handles
