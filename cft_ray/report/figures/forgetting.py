"""Does similarity predict forgetting? Each measure against the backward transfer, one point a cell.

The pairs' colours are taken from a map of even lightness, so that a grey print orders them alike.
Beside the points stand Spearman's ρ, its permutation p-value and the number of cells (`cft_ray.report.correlation`);
"descriptive" where too few distinct values stand behind them for the p-value to mean much.
"""

from typing import Any

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cft_ray.report.correlation import BACKWARD_TRANSFER, Predictor, measured_predictors, pick, predictors, targets
from cft_ray.report.figures import style
from cft_ray.report.tables import GridTables

COLUMNS = 3
FILLS = ("full", "left", "top", "right", "bottom")
_OPEN: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": "black", "markersize": 5}
_POINT: dict[str, Any] = {"markerfacecoloralt": "white", "markeredgecolor": "black", "markeredgewidth": 0.5, "markersize": 5}


def draw(tables: GridTables, correlations: pl.DataFrame) -> dict[str, Figure]:
    """A panel per measure: colour tells the pair, the marker the strategy, the filling the model.

    Args:
        tables: of the grid.
        correlations: `cft_ray.report.correlation.correlations` of it.
    """
    shown = list(measured_predictors(correlations))
    points = predictors(tables).join(targets(tables), on="cell", how="left", maintain_order="left")
    pairs, strategies = (points[name].unique(maintain_order=True).to_list() for name in ("pair", "strategy"))
    colours = dict(zip(pairs, colormaps[style.MAP](np.linspace(0, 0.97, max(len(pairs), 2))), strict=False))
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    canvas = style.figure(1.5 + 2.3 * lines, style.WIDTH if columns > 1 else 4.0)
    flat = [axes for line in style.panels(canvas, lines, columns, sharey=True) for axes in line]
    for number, (axes, one) in enumerate(zip(flat, shown, strict=False)):
        for row in points.drop_nulls([one.name, BACKWARD_TRANSFER]).iter_rows(named=True):
            axes.plot(
                row[one.name],
                row[BACKWARD_TRANSFER],
                linestyle="",
                marker=style.MARKERS[strategies.index(row["strategy"]) % len(style.MARKERS)],
                fillstyle=FILLS[tables.models.index(row["model"]) % len(FILLS)],
                markerfacecolor=colours[row["pair"]],
                **_POINT,
            )
        _frame(axes, one, pick(correlations, predictor=one.name, target=BACKWARD_TRANSFER, method="spearman"))
        if number % columns == 0:
            axes.set_ylabel("backward transfer of TA\n(below 0: forgetting)")
    for axes in flat[len(shown) :]:
        axes.set_axis_off()
    style.legend(canvas, _handles(tables, colours, strategies), columns=4)
    canvas.suptitle("Does similarity predict forgetting? One point per cell")
    return {"similarity_and_forgetting": canvas}


def _frame(axes: Axes, one: Predictor, found: dict | None) -> None:
    axes.axhline(0, color="#808080", linewidth=0.6, zorder=0)
    axes.grid(visible=True, zorder=0)
    axes.margins(0.08)
    axes.set_xlabel(one.label)
    if found is None or found["value"] is None:
        axes.set_title("too few cells" if found is None or found["n"] < 3 else f"n = {found['n']}, a side is constant")
        return
    p = f"p = {found['p']:.2g}" if found["p"] >= 0.001 else "p < 0.001"
    reading = f"\n({found['reading']})" if found["reading"] else ""
    value = f"{found['value']:+.2f}".replace("-", "−")
    axes.set_title(f"ρ = {value}, {p}, n = {found['n']}{reading}")


def _handles(tables: GridTables, colours: dict[str, Any], strategies: list[str]) -> list[Line2D]:
    handles = [
        Line2D([], [], linestyle="", marker="o", markerfacecolor=colour, **_POINT, label=pair) for pair, colour in colours.items()
    ]
    handles += [
        Line2D([], [], linestyle="", marker=style.MARKERS[number % len(style.MARKERS)], **_OPEN, label=strategy)
        for number, strategy in enumerate(strategies)
    ]
    if len(tables.models) > 1:
        handles += [
            Line2D([], [], linestyle="", marker="o", fillstyle=fill, markerfacecolor="#808080", **_POINT, label=model)
            for model, fill in zip(tables.models, FILLS, strict=False)
        ]
    return handles
