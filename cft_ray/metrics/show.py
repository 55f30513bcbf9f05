"""Results for people: the table in the terminal, and files for other programs."""

import io
import json
from itertools import groupby
from typing import Literal, get_args

import polars as pl
from rich import box
from rich.table import Table
from rich.text import Text

from cft_ray.errors import UserError
from cft_ray.metrics.accounts import accounts, lines
from cft_ray.metrics.reading import Results

Format = Literal["parquet", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)
ABSENT = "–"
LONGEST_NAME = 20
"""characters of a cell's name that stand in one line with its numbers; the rest of a longer one is put below"""


def results_table(summary: pl.DataFrame, *, title: str | None = None, width: int = 80) -> Table:
    """TA and LA after Phase 1 and Phase 2 and their change, one line per cell under its model and pair.

    Seeds and swept settings appear only where they tell cells apart, the number of scores where a cell is incomplete.
    Where a line of a cell would leave its name less than it needs, its abilities stand in lines of their own.

    Args:
        summary: `Results.summary()`, collected (and filtered as wanted).
        title: above the table, e.g. the grid's name.
        width: columns that there are; 30 are needed.
    """
    incomplete = summary.filter(pl.col("scores_there") < pl.col("scores_due")).height
    names = _names(summary)
    numbers = sum(len(column) + 1 for column in (*("0.000",) * 4, *("+0.000",) * 2)) + (len("scores ") if incomplete else 0)
    # The table has a column of blank at either edge.
    narrow = width < numbers + max((min(len(name), LONGEST_NAME) for name in names), default=0) + 2
    abilities = ("TA", "LA")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, caption_justify="left")
    if narrow:
        table.add_column(f"cell {'1':>5} {'2':>5} change", overflow="fold")
    else:
        table.add_column("cell", overflow="fold")
        for column in (f"{ability}{place}" for ability in abilities for place in (" 1", " 2", "")):
            change = column in abilities
            header = "change" if change else column
            table.add_column(header, justify="right", no_wrap=True, min_width=len("+0.000" if change else "0.000"))
        if incomplete:
            table.add_column("scores", justify="right", no_wrap=True)

    cells = [{**cell, "name": name} for cell, name in zip(summary.to_dicts(), names, strict=True)]
    for (model, pair), group in groupby(cells, key=lambda cell: (cell["model"], cell["pair"])):
        table.add_row(Text(f"{model} {pair}", style="bold"))
        for cell in group:
            lines = [
                [_score(cell[f"{ability}_phase1"]), _score(cell[f"{ability}_phase2"]), _change(cell[f"{ability}_change"])]
                for ability in ("ta", "la")
            ]
            name = Text(cell["name"])
            there, due = cell["scores_there"], cell["scores_due"]
            scores = [Text(f"{there}/{due}", style="yellow" if there < due else "")] if incomplete else []
            if narrow:
                table.add_row(Text("  ").join([name, *scores]))
                for ability, line in zip(abilities, lines, strict=True):
                    for text, places in zip(line, (5, 5, 6), strict=True):
                        text.pad_left(places - len(text))
                    table.add_row(Text(" ").join([Text(f"  {ability}"), *line]))
            else:
                table.add_row(name, *lines[0], *lines[1], *scores)
        table.add_section()
    table.caption = "TA task ability, LA language ability, 0 to 1, after phases 1 and 2."
    if incomplete:
        table.caption += f"\n{incomplete} of {summary.height} cells incomplete: {ABSENT} where a score is absent."
    for reason in summary["skipped"].drop_nulls().unique(maintain_order=True):
        table.caption += f"\nSkipped, and in no average: {reason}."
    return table


def _names(summary: pl.DataFrame) -> list[str]:
    """What tells each cell from the others of its model and pair."""
    with_seed = summary["seed"].n_unique() > 1
    with_settings = summary["settings"].n_unique() > 1
    names = []
    for cell in summary.to_dicts():
        name = f"  {cell['strategy']}"
        if with_seed:
            name += f"  seed {cell['seed']}"
        if with_settings:
            name += "".join(f"  {path.rpartition('.')[2]}={value}" for path, value in json.loads(cell["settings"]).items())
        names.append(name)
    return names


def row_lines(results: Results, grid: str | None) -> list[str]:
    """A line for each stage of a grid that lost rows, or used some with something to know; of all grids: None."""
    found = results.rows().select("fingerprint").unique()
    if grid is not None:
        found = found.join(results.stages().filter(pl.col("grid") == grid), on="fingerprint", how="semi")
    wanted = set(found.collect()["fingerprint"])
    named = results.rows().filter(pl.col("fate") == "came").select("fingerprint", "kind", "label").collect()
    read = accounts(results.storage)
    return lines((f"{kind} {label or key[:12]}", read.get(key)) for key, kind, label in named.iter_rows() if key in wanted)


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


def _score(value: float | None) -> Text:
    return Text(ABSENT, style="dim") if value is None else Text(f"{value:.3f}")


def _change(value: float | None) -> Text:
    if value is None:
        return Text(ABSENT, style="dim")
    rounded = round(value, 3)
    return Text(f"{rounded:+.3f}" if rounded else "0.000", style="red" if rounded < 0 else "green" if rounded > 0 else "")
