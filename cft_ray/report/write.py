"""Everything that can be drawn of a grid, written into a folder; what cannot is said, with the way to get it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from cft_ray.errors import UserError
from cft_ray.metrics.show import ABSENT, exported
from cft_ray.report.correlation import ALL, BACKWARD_TRANSFER, DESCRIPTIVE, WITHIN, correlations, measured_predictors
from cft_ray.report.figures import des, drift, forgetting, languages, layer_means, style, variance
from cft_ray.report.tables import GridTables, NothingToDraw
from cft_ray.storage.local import write_local

FIGURES: dict[str, Callable[[GridTables], dict[str, Figure]]] = {
    "Figure 1, layer means": layer_means.draw,
    "Figure 2, variance by pair": variance.draw_pairs,
    "Figure D3, languages": languages.draw,
    "Figure D4, variance by strategy": variance.draw_strategies,
    "drift heat map": drift.draw,
    "DES matrix": des.draw,
}
FORGETTING = "similarity and forgetting"
CORRELATION = "similarity_and_forgetting"
"""file name of the table of correlations"""
_UNSAFE = re.compile(r"[^\w.-]|^[.-]")
"""what a name in the tables may have and a file's should not"""
_LONGEST_NAME = 150
"""bytes"""


@dataclass(frozen=True)
class Written:
    """What became of one figure."""

    figure: str
    files: tuple[Path, ...]
    missing: str = ""
    """why it is left out; empty where it is not"""
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """What was written.

    ``correlations`` has the rows of `cft_ray.report.correlation.SCHEMA`, none where nothing could be correlated.
    """

    written: tuple[Written, ...]
    correlations: pl.DataFrame | None


def write(tables: GridTables, folder: Path) -> Report:
    """Draw every figure whose rows are there, and the table of correlations; each file appears whole or not at all.

    Args:
        tables: of a grid.
        folder: where to; made if need be. Files of the same names are replaced.

    Raises:
        UserError: the folder cannot be written to.
    """
    outcomes = []
    with style.styled():
        for name, draw in FIGURES.items():
            try:
                outcomes.append(Written(name, _save(draw(tables), folder)))
            except NothingToDraw as error:
                outcomes.append(Written(name, (), str(error), error.fix))
        try:
            found = correlations(tables)
        except NothingToDraw as error:
            return Report((*outcomes, Written(FORGETTING, (), str(error), error.fix)), None)
        drawn = _save(forgetting.draw(tables, found), folder)
    rows = [_put(folder / f"{CORRELATION}.{form}", exported(found, form)) for form in ("parquet", "csv")]
    return Report((*outcomes, Written(FORGETTING, (*drawn, *rows))), found)


def file_name(name: str) -> str:
    """A name from the tables, which anybody may have written, as the name of one file or folder.

    Args:
        name: of a grid or a figure.

    Returns:
        the name itself where it is one; else what is left of it, and a mark of its own, so that two names stay two files.
    """
    safe = _UNSAFE.sub("_", name).encode(errors="replace")[:_LONGEST_NAME].decode(errors="ignore")
    return safe if safe and safe == name else f"{safe}-{sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def written_table(report: Report, folder: Path) -> Table:
    """What was written and what is missing, to be read."""
    table = Table(title=f"figures in {folder}", title_justify="left", box=box.SIMPLE_HEAD, padding=0, caption_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("files", overflow="fold")
    for one in report.written:
        table.add_row(one.figure, ", ".join(_names(one.files)) if one.files else f"left out: {one.missing}\n  fix: {one.fix}")
    return table


def correlation_table(rows: pl.DataFrame, *, title: str) -> Table:
    """The correlations with the backward transfer over all cells and within each pair; the files hold the rest as well.

    Args:
        rows: of `cft_ray.report.correlation.correlations`.
        title: above the table.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, caption_justify="left")
    table.add_column("measure", overflow="fold")
    for column in ("n", "Spearman", "p", "Kendall", "p", "Pearson", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("reading")
    chosen = rows.filter(pl.col("target") == BACKWARD_TRANSFER)
    for measure, scope in product(measured_predictors(chosen), (ALL, WITHIN)):
        own = chosen.filter(predictor=measure.name, model=scope)
        if own.is_empty() or (scope == WITHIN and own["value"].null_count()):
            continue  # a measure of the pair alone does not differ inside it
        line = [measure.label if scope == ALL else f"  {WITHIN}", str(own["n"][0])]
        for value, p in own.select("value", "p").iter_rows():
            line += [ABSENT, ABSENT] if value is None else [f"{value:+.2f}", f"{p:.3f}"]
        table.add_row(*line, own["reading"][0])
    chosen = chosen.filter(pl.col("model").is_in([ALL, WITHIN]))
    table.caption = "Correlation with the backward transfer of TA (negative: forgetting), one value per cell; permutation p."
    if (chosen["reading"] == DESCRIPTIVE).any():
        table.caption += "\nDescriptive: too few distinct values for the p-value to answer the question."
    return table


def _save(figures: dict[str, Figure], folder: Path) -> tuple[Path, ...]:
    return tuple(
        _put(folder / f"{file_name(name)}.{form}", data)
        for name, canvas in figures.items()
        for form, data in style.encoded(canvas).items()
    )


def _put(path: Path, data: bytes) -> Path:
    try:
        write_local(path.absolute(), data)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(path), fix="give another folder") from error
    return path


def _names(files: tuple[Path, ...]) -> list[str]:
    """``name.{pdf,svg,png}`` for the files of one name."""
    forms: dict[str, list[str]] = {}
    for path in files:
        forms.setdefault(path.stem, []).append(path.suffix[1:])
    return [f"{stem}.{{{','.join(suffixes)}}}" for stem, suffixes in forms.items()]
