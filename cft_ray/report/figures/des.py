"""DES matrix: how alike the grid's data sets are, with bootstrap intervals.

The value is the cosine of the two mean sentence embeddings (table `similarity`, `des`, with `des_low` and `des_high`).
"""

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from cft_ray.report.figures import style
from cft_ray.report.tables import GridTables, NothingToDraw

MEASURES = ("des", "des_low", "des_high")
LEXICAL = "lexical embedding (character n-grams): alike in words, not in meaning"


def draw(tables: GridTables) -> dict[str, Figure]:
    """One matrix over all data sets of the grid that were compared.

    Raises:
        NothingToDraw: there is no DES of two data sets.
    """
    values = matrix(tables)
    if not values:
        raise NothingToDraw("no rows des of two data sets in the table similarity (stages embed and similarity)")
    names = sorted({name for pair in values for name in pair})
    side = max(3.2, 0.85 * len(names) + 1.8)
    canvas = style.figure(side * 0.86, min(side, style.WIDTH))
    axes = style.panels(canvas, 1, 1)[0][0]
    shown = np.full((len(names), len(names)), np.nan)
    for row, left in enumerate(names):
        for column, right in enumerate(names):
            if (left, right) in values:
                shown[row, column] = values[left, right][0]
    least = float(np.nanmin(shown))
    image = axes.imshow(shown, cmap=style.MAP, vmin=min(least, 0.0) if least < 0.5 else 0.5, vmax=1.0)
    axes.set_facecolor("#eeeeee")
    for row, left in enumerate(names):
        for column, right in enumerate(names):
            if (left, right) in values:
                tone = float(np.asarray(image.norm(shown[row, column])))
                colour = "black" if tone > 0.55 else "white"
                axes.text(column, row, _text(values[left, right]), ha="center", va="center", fontsize=7, color=colour)
            else:
                axes.text(column, row, "same" if left == right else "not\nmeasured", ha="center", va="center", fontsize=6)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    canvas.colorbar(image, ax=axes, shrink=0.8, label="DES (cosine of mean embeddings)")
    axes.set_title("\n".join(["Similarity of data sets, with 95 % bootstrap intervals", *embedders(tables)]))
    return {"des": canvas}


def matrix(tables: GridTables) -> dict[tuple[str, str], tuple[float, float | None, float | None]]:
    """(name, name) -> DES, lower and upper end of its interval; both orders of each pair of data sets."""
    rows = tables.similarity.filter(pl.col("measure").is_in(MEASURES) & pl.col("language").is_null())
    found: dict[tuple[str, str], dict[str, float]] = {}
    for measure, left, right, value in rows.select("measure", "left", "right", "value").iter_rows():
        sides = [tables.stages.get(side) for side in (left, right)]
        if all(side is not None and side.kind == "dataset" for side in sides):
            found.setdefault((tables.label(left), tables.label(right)), {})[measure] = value
    whole = {pair: (own["des"], own.get("des_low"), own.get("des_high")) for pair, own in found.items() if "des" in own}
    return whole | {(right, left): value for (left, right), value in whole.items()}


def embedders(tables: GridTables) -> list[str]:
    """What the comparisons' embeddings came from, a line each; empty where the stages do not say."""
    stages = tables.similarity.filter(pl.col("measure") == "des")["fingerprint"].unique(maintain_order=True)
    outputs = [tables.stages[stage].outputs for stage in stages if stage in tables.stages]
    named = dict.fromkeys(str(one["embedder"]) for one in outputs if one.get("embedder"))
    return [LEXICAL if name == "lexical" else f"embedded by {name}" for name in named]


def _text(value: tuple[float, float | None, float | None]) -> str:
    des, low, high = value
    return f"{des:.3f}" if low is None or high is None else f"{des:.3f}\n{low:.3f}–{high:.3f}"
