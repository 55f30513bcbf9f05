"""Results for people: the table in the terminal, and files for other programs."""

import io
import json
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

import polars as pl
from rich import box
from rich.table import Table
from rich.text import Text

from cft_ray.artifacts.storage import write_local
from cft_ray.errors import UserError

Format = Literal["parquet", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)
ABSENT = "–"


def results_table(summary: pl.DataFrame, *, title: str | None = None) -> Table:
    """TA and LA after Phase 1 and Phase 2 and their change, one line per cell under its model and pair; for 80 columns on.

    Seeds and swept settings appear only where they tell cells apart, the number of scores where a cell is incomplete.

    Args:
        summary: `Results.summary()`, collected (and filtered as wanted).
        title: above the table, e.g. the grid's name.
    """
    with_seed = summary["seed"].n_unique() > 1
    with_settings = summary["settings"].n_unique() > 1
    incomplete = summary.filter(pl.col("scores_there") < pl.col("scores_due")).height
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, caption_justify="left")
    table.add_column("cell", overflow="fold")
    for column in ("TA 1", "TA 2", "change", "LA 1", "LA 2", "change"):
        table.add_column(column, justify="right", no_wrap=True, min_width=len("+0.000" if column == "change" else "0.000"))
    if incomplete:
        table.add_column("scores", justify="right", no_wrap=True)

    for (model, pair), cells in groupby(summary.to_dicts(), key=lambda cell: (cell["model"], cell["pair"])):
        table.add_row(Text(f"{model} {pair}", style="bold"))
        for cell in cells:
            name = f"  {cell['strategy']}"
            if with_seed:
                name += f"  seed {cell['seed']}"
            if with_settings:
                name += "".join(f"  {path.rpartition('.')[2]}={value}" for path, value in json.loads(cell["settings"]).items())
            line = [Text(name)]
            for ability in ("ta", "la"):
                line += [_score(cell[f"{ability}_phase1"]), _score(cell[f"{ability}_phase2"]), _change(cell[f"{ability}_change"])]
            if incomplete:
                there, due = cell["scores_there"], cell["scores_due"]
                line.append(Text(f"{there}/{due}", style="yellow" if there < due else ""))
            table.add_row(*line)
        table.add_section()
    table.caption = "TA task ability, LA language ability, 0 to 1, after phases 1 and 2."
    if incomplete:
        table.caption += f"\n{incomplete} of {summary.height} cells incomplete: {ABSENT} where a score is absent."
    for reason in summary["skipped"].drop_nulls().unique(maintain_order=True):
        table.caption += f"\nSkipped, and in no average: {reason}."
    return table


def exported(frame: pl.DataFrame, form: str) -> bytes:
    """A frame as the bytes of a file: Parquet, CSV with a header, or JSON (a list of objects).

    Raises:
        UserError: an unknown format.
    """
    if form not in FORMATS:
        raise UserError(f"unknown format {form!r}", fix=f"use one of {', '.join(FORMATS)}")
    sink = io.BytesIO()
    if form == "parquet":
        frame.write_parquet(sink)
    elif form == "csv":
        frame.write_csv(sink)
    else:
        frame.write_json(sink)
        sink.write(b"\n")
    return sink.getvalue()


def export(frame: pl.DataFrame, path: Path, form: str) -> None:
    """Write a frame to a local file, whole or not at all.

    Args:
        frame: e.g. ``cft_ray.open(uri).results().collect()``.
        path: the file; its folder is made.
        form: parquet, csv or json.

    Raises:
        UserError: an unknown format, or a path that cannot be written.
    """
    data = exported(frame, form)
    try:
        write_local(path.absolute(), data)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(path), fix="give another path") from error


def _score(value: float | None) -> Text:
    return Text(ABSENT, style="dim") if value is None else Text(f"{value:.3f}")


def _change(value: float | None) -> Text:
    if value is None:
        return Text(ABSENT, style="dim")
    rounded = round(value, 3) + 0.0  # -0.0 is no change
    return Text(f"{rounded:+.3f}" if rounded else "0.000", style="red" if rounded < 0 else "green" if rounded > 0 else "")
