"""Canonical rows: the one shape that every data set takes, whatever its source calls its columns.

Seven text columns, never null, ``""`` where a source has nothing. `id` is unique within a data set, so that a row can be
named in tables, sampled without doubt and matched with its counterpart in another language. `turns` holds what was said
before `instruction` in a conversation (`dump_turns`): `instruction`, `input` and `output` are its last two turns. The file
is ``rows.parquet``; a stage may write further columns behind these (replay does), readers of canonical rows do not see them.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cft_ray.errors import UserError

COLUMNS: tuple[str, ...] = ("id", "language", "system", "instruction", "input", "output", "turns")
SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in COLUMNS])
FILE = "rows.parquet"
_OPTIONAL = "turns"
"""may be missing from tables that are made elsewhere: then no row has earlier turns"""


def dump_turns(turns: Sequence[Mapping[str, str]]) -> str:
    """The column `turns` of a conversation.

    Args:
        turns: what comes before the last user turn: ``{"role": "user" or "assistant", "content": …}``, user and assistant
            by turns, the user first.

    Returns:
        ``""`` for no turns, else a JSON list.

    Raises:
        ValueError: the turns are not as described.
    """
    for place, turn in enumerate(turns):
        if set(turn) != {"role", "content"} or turn["role"] != ("user", "assistant")[place % 2]:
            raise ValueError(f"turn {place + 1} is {dict(turn)}: user and assistant take turns, the user first")
        if not isinstance(turn["content"], str):
            raise ValueError(f"turn {place + 1} is no text")
    if len(turns) % 2:
        raise ValueError("the last of the earlier turns is not the assistant's")
    return json.dumps([dict(turn) for turn in turns], ensure_ascii=False) if turns else ""


def load_turns(text: str) -> list[dict[str, str]]:
    """Inverse of `dump_turns`.

    Raises:
        ValueError: the text is none of its results.
    """
    if not text:
        return []
    turns = json.loads(text)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("earlier turns are a JSON list of objects with `role` and `content`")
    dump_turns(turns)
    return turns


def table(rows: Iterable[Mapping[str, str]]) -> pa.Table:
    """Canonical table of mappings that hold some of the columns; absent ones become ``""``.

    Raises:
        pa.ArrowTypeError: a value is not text.
        KeyError: a row has no ``id`` or no ``language``.
    """
    rows = list(rows)
    arrays = [
        pa.array([row[name] if name in ("id", "language") else row.get(name, "") for row in rows], pa.string())
        for name in COLUMNS
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def validate(rows: pa.Table, where: str) -> None:
    """Refuse what is not a canonical, non-empty table with unique ids.

    Args:
        rows: a table with at least the canonical columns (`turns` may be missing).
        where: file or data set, for the message.

    Raises:
        UserError: a column is missing, not text, or has nulls; an id occurs twice; there are no rows.
    """
    for name in COLUMNS:
        if name == _OPTIONAL and name not in rows.column_names:
            continue
        if name not in rows.column_names:
            raise UserError(
                f"no column {name!r} among {rows.column_names}", where=where, fix=f"canonical rows have {list(COLUMNS)}"
            )
        column = rows.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise UserError(f"column {name!r} is {column.type}", where=where, fix="canonical columns are text")
        if column.null_count:
            raise UserError(f"column {name!r} has {column.null_count} nulls", where=where, fix='use "" where a row has nothing')
    if rows.num_rows == 0:
        raise UserError("the data set is empty", where=where, fix="give it at least one row")
    ids = rows.column("id")
    if len(ids.unique()) != rows.num_rows:
        twice = next(item["values"] for item in ids.value_counts().to_pylist() if item["counts"] > 1)
        raise UserError(f"id {twice!r} occurs more than once", where=where, fix="ids are unique within a data set")


def read_rows(path: str | Path) -> pa.Table:
    """The canonical rows of an artifact, validated.

    Args:
        path: ``rows.parquet``, or the folder that holds it.

    Returns:
        A table of exactly `SCHEMA`, in the file's order.

    Raises:
        UserError: see `validate`; also where the file is absent or no Parquet.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    try:
        # ParquetFile, not read_table: a folder named `language=…` above the file must not become a column.
        with pq.ParquetFile(file) as source:
            rows = source.read(columns=[name for name in source.schema_arrow.names if name in COLUMNS])
    except FileNotFoundError as error:
        raise UserError("there is no such file", where=str(file), fix="give the folder of a dataset artifact") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"not a readable Parquet file ({error})", where=str(file), fix="write it again") from error
    validate(rows, str(file))
    if _OPTIONAL not in rows.column_names:
        rows = rows.append_column(_OPTIONAL, pa.array([""] * rows.num_rows, pa.string()))
    return rows.select(list(COLUMNS)).cast(SCHEMA)


def write_rows(path: str | Path, batches: Iterable[pa.Table], schema: pa.Schema = SCHEMA) -> int:
    """Write tables one after the other, so that no more than one is in memory; the file appears only when whole.

    Args:
        path: the file, e.g. ``output / FILE``.
        batches: tables of `schema`.
        schema: `SCHEMA`, possibly with further columns behind it.

    Returns:
        The number of rows written.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_table(batch.select(schema.names).cast(schema))
                count += batch.num_rows
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def count_by_language(rows: pa.Table) -> dict[str, int]:
    """Rows of each language, in order of first appearance."""
    counts = rows.column("language").value_counts()
    return {item["values"]: item["counts"] for item in counts.to_pylist()}


def dictionaries(rows: pa.Table) -> Sequence[dict[str, str]]:
    """The rows as mappings, for `cft_ray.data.templates`."""
    return rows.select([name for name in COLUMNS if name in rows.column_names]).to_pylist()
