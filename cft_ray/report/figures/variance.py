"""Figures 2 and D4: how far the covariance of the activations moves from Phase 1 to Phase 2, layer by layer.

Figure 2 has one curve per pair, without mitigation; Figure D4 one per strategy, a panel per model and pair. The value is
the norm of C_phase1 − C_phase2 over the prompts (table `similarity`, `covariance_frobenius` and `covariance_spectral`).
Several seeds are one curve: their mean, in a band from the least to the largest.
"""

from collections.abc import Iterable

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from cft_ray.report.figures import style
from cft_ray.report.tables import GridTables, NothingToDraw

ROLE = "insight:covariance:phase1-phase2"
NORMS = {"covariance_frobenius": "Frobenius", "covariance_spectral": "spectral"}
LABEL = "‖ΔC‖ (squared activation)"
LOGARITHMIC = 100.0
"""a figure whose largest value is so many times the least has logarithmic axes, all of them, so that panels compare"""


def draw_pairs(tables: GridTables) -> dict[str, Figure]:
    """Figure 2: rows are models, columns norms, curves pairs.

    Raises:
        NothingToDraw: there are no covariance changes of unmitigated cells.
    """
    rows = _rows(tables).filter(pl.col("strategy") == tables.plain)
    if rows.is_empty():
        raise NothingToDraw(f"no rows {' and '.join(NORMS)} of cells without mitigation in the table similarity")
    models = [model for model in tables.models if model in set(rows["model"])]
    canvas = style.figure(0.9 + 2.3 * len(models))
    looks = _looks(tables.cells["pair"].unique(maintain_order=True), set(rows["pair"]))
    for line, model in zip(style.panels(canvas, len(models), len(NORMS)), models, strict=True):
        for axes, norm in zip(line, NORMS, strict=True):
            mine = rows.filter((pl.col("model") == model) & (pl.col("measure") == norm))
            _panel(axes, mine, "pair", looks, f"{model}, {NORMS[norm]} norm", logarithmic=_logarithmic(rows))
        line[0].set_ylabel(LABEL)
    style.legend(canvas, _handles(looks))
    canvas.suptitle("Change of the activations' covariance from Phase 1 to Phase 2, without mitigation")
    return {"figure_2_variance": canvas}


def draw_strategies(tables: GridTables) -> dict[str, Figure]:
    """Figure D4: a file per norm; panels are models and pairs, curves strategies.

    Raises:
        NothingToDraw: there are no covariance changes.
    """
    rows = _rows(tables)
    if rows.is_empty():
        raise NothingToDraw(f"no rows {' and '.join(NORMS)} in the table similarity")
    looks = _looks(_ways(tables.cells)["way"].unique(maintain_order=True), set(rows["way"]))
    drawn: dict[str, Figure] = {}
    for norm, name in NORMS.items():
        mine = rows.filter(pl.col("measure") == norm)
        places = mine.select("model", "pair").unique(maintain_order=True).rows()
        columns = min(2, len(places))
        lines = -(-len(places) // columns)
        canvas = style.figure(1.1 + 2.1 * lines + 0.15 * (len(looks) // 4), style.WIDTH if columns > 1 else 4.8)
        flat = [axes for line in style.panels(canvas, lines, columns) for axes in line]
        for axes, (model, pair) in zip(flat, places, strict=False):
            own = mine.filter((pl.col("model") == model) & (pl.col("pair") == pair))
            _panel(axes, own, "way", looks, f"{model}, {pair}", logarithmic=_logarithmic(mine))
        for axes in flat[::columns]:
            axes.set_ylabel(LABEL)
        for axes in flat[len(places) :]:
            axes.set_axis_off()
        style.legend(canvas, _handles(looks))
        canvas.suptitle(f"Change of the activations' covariance from Phase 1 to Phase 2, by strategy ({name} norm)")
        drawn[f"figure_d4_variance_{name.lower()}"] = canvas
    return drawn


def _rows(tables: GridTables) -> pl.DataFrame:
    return _ways(pl.concat([tables.measured(ROLE, norm).drop_nulls("layer") for norm in NORMS]))


def _ways(rows: pl.DataFrame) -> pl.DataFrame:
    """With the column ``way``: the strategy, and its swept settings where there are any."""
    settings = pl.when(pl.col("settings") == "{}").then(pl.lit("")).otherwise(" " + pl.col("settings").str.strip_chars("{}"))
    return rows.with_columns(way=pl.col("strategy") + settings.str.replace_all('"', ""))


def _looks(names: Iterable[str], wanted: set[str]) -> dict[str, style.Series]:
    """Each name's look, which does not depend on what else is there."""
    return {name: style.series(number) for number, name in enumerate(names) if name in wanted}


def _logarithmic(rows: pl.DataFrame) -> bool:
    positive = rows.filter(pl.col("value") > 0)["value"]
    least, largest = positive.min(), positive.max()
    return isinstance(least, float) and isinstance(largest, float) and largest > LOGARITHMIC * least


def _panel(axes: Axes, rows: pl.DataFrame, by: str, looks: dict[str, style.Series], title: str, *, logarithmic: bool) -> None:
    for name, look in looks.items():
        over = pl.col("value")
        own = rows.filter(pl.col(by) == name).group_by("layer").agg(over.mean(), low=over.min(), high=over.max()).sort("layer")
        if own.is_empty():
            continue
        every = max(1, own.height // 16)
        axes.plot(own["layer"], own["value"], color=look.colour, marker=look.marker, linestyle=look.dash, markevery=every)
        if (own["high"] > own["low"]).any():
            axes.fill_between(own["layer"], own["low"], own["high"], color=look.colour, alpha=0.15, linewidth=0)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    axes.set_xlabel("decoder layer")
    axes.set_title(title)


def _handles(looks: dict[str, style.Series]) -> list[Line2D]:
    return [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=name) for name, look in looks.items()
    ]
