"""Reading tabular files of any of four formats as a stream of Arrow tables, from a folder or an object store.

What a file holds is decided by its name's ending, never by trying; formats that can carry code (pickles, loading
scripts) are refused with all others that are not named here. A reader gives only the columns it is asked for, as text,
with nulls where the file has nulls; what is not text or a whole number is an error that names file, row and column.
"""

import difflib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cft_ray.data import records as text
from cft_ray.errors import UserError
from cft_ray.storage.files import kind_of, names_beside, open_file

BATCH = 8192
"""rows of one table"""
ENDINGS = (".parquet", *text.FORMATS)


@dataclass(frozen=True)
class Wanted:
    """Columns that are asked of a source.

    Args:
        columns: names, in the order in which they are given back; ``turns[0]`` is item 0 of the lists in ``turns``.
        optional: those of them that the source may lack: they are null then.
        lists: those of them that may hold lists: they are given as JSON.
    """

    columns: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()

    @property
    def required(self) -> list[str]:
        """Those that the source must have."""
        return [name for name in self.columns if name not in self.optional]

    def sources(self, found: Collection[str]) -> list[str]:
        """The source's own columns that are read, each once."""
        named = dict.fromkeys(item(name, found)[0] for name in self.columns)
        return [name for name in named if name in found]


def read_file(location: str, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted columns of one file, in the file's order.

    Args:
        location: path or URI (``s3://…``); ``.parquet``, ``.jsonl``, ``.ndjson``, ``.json`` (an object a line, or an
            array of objects, which is read whole) or ``.csv`` with a header line; the text formats also compressed
            (``.gz``, ``.bz2``, ``.zst``, ``.lz4``).
        wanted: which columns.

    Yields:
        Tables of at most `BATCH` rows, all columns nullable text.

    Raises:
        UserError: no such file, unknown format, missing column, a value that is not text, undecodable bytes, broken
            syntax; always with the file, and with the line or row where one is to blame.
    """
    _check(location)
    return _parquet(location, wanted) if text.ending(location) == ".parquet" else _tables(location, wanted)


def column_names(location: str) -> list[str]:
    """The columns of a file; of JSON, the keys of its first rows.

    Raises:
        UserError: as `read_file`.
    """
    _check(location)
    if text.ending(location) == ".parquet":
        with _opened_parquet(location) as source:
            return source.schema_arrow.names
    names = text.header(location)
    return names if names is not None else list(_keys(islice(text.records(location), BATCH)))


def item(name: str, found: Collection[str]) -> tuple[str, int | None]:
    """What a wanted column names: ``turns[0]`` is item 0 of the lists in ``turns``, unless a column is called so itself."""
    column, bracket, index = name.removesuffix("]").rpartition("[")
    return (column, int(index)) if name.endswith("]") and bracket and index.isdecimal() and name not in found else (name, None)


def require_columns(found: Collection[str], wanted: Collection[str], where: str) -> None:
    """Refuse a file that lacks a wanted column, naming the nearest that it has and that is not in use already.

    Raises:
        UserError: always the first missing one.
    """
    sources = [item(name, found)[0] for name in wanted]
    free = {name.casefold(): name for name in found if name not in sources}
    for name in sources:
        if name not in found:
            near = difflib.get_close_matches(name.casefold(), free, n=1, cutoff=0.5)
            fix = f"map it to {free[near[0]]!r}" if near else "map what the file has, and leave out of `columns` what it has not"
            raise UserError(f"no column {name!r}; columns found: {', '.join(map(repr, found)) or 'none'}", where=where, fix=fix)


def as_text(table: pa.Table, wanted: Wanted, where: str, first: int = 1) -> pa.Table:
    """The columns as nullable text; whole numbers (ids) are written out; a list that is too short has null for its item.

    Args:
        table: with the required columns.
        wanted: which.
        where: file or data set, for messages.
        first: number of the table's first row.

    Raises:
        UserError: a column of another type, or one that is there twice; bytes that are no UTF-8.
    """
    arrays = []
    for name in wanted.columns:
        source, index = item(name, table.column_names)
        count = table.column_names.count(source)
        if count == 0:
            arrays.append(pa.nulls(table.num_rows, pa.string()))
            continue
        if count > 1:
            raise UserError(f"{count} columns are called {source!r}", where=where, fix="give each column a name of its own")
        column = table.column(source)
        _refuse_bytes(column, source, where, first)
        listed = _listed(column.type)
        if listed and (index is not None or name in wanted.lists):
            rows = column.to_pylist()
            if index is None:
                values, kind = [None if row is None else _json(row) for row in rows], pa.string()
            else:
                values = [row[index] if row is not None and len(row) > index else None for row in rows]
                kind = column.type.value_type
            column = pa.chunked_array([pa.array(values, kind)])
        if not _textual(column.type):
            fix = f"map one of its items, {name + '[0]'!r}" if listed and index is None else _fix(pa.types.is_struct(column.type))
            raise UserError(f"column {name!r} is {column.type}, not text", where=where, fix=fix)
        arrays.append(column.cast(pa.string()))
    return pa.table(arrays, names=list(wanted.columns))


def _fix(structured: bool) -> str:
    return "read chat rows with `format: messages` or `format: sharegpt`" if structured else "map a column of text"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _listed(kind: pa.DataType) -> bool:
    types = pa.types
    fixed = types.is_fixed_size_list(kind)
    return fixed or types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind)


def _textual(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _textual(kind.value_type)
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
    )


def _refuse_bytes(column: pa.ChunkedArray, name: str, where: str, first: int) -> None:
    """A writer may call bytes text that are none; nothing looks at them until somebody reads them."""
    row = first
    for chunk in column.chunks:
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid as error:
            for place in range(len(chunk)):
                try:
                    chunk[place].as_py()
                except UnicodeDecodeError as wrong:
                    what = f"byte {wrong.object[wrong.start]:#04x} at {wrong.start} in column {name!r} is no UTF-8"
                    fix = "write the text as UTF-8"
                    raise UserError(what, where=f"{where}: row {row + place}", fix=fix) from None
            raise UserError(f"column {name!r} is damaged ({error})", where=where, fix="fetch or write it again") from error
        row += len(chunk)


def _check(location: str) -> None:
    """Refuse what is not read, and what is not there."""
    ending = text.ending(location)
    if ending not in ENDINGS:
        what = f"files ending in {ending!r} are not read" if ending else "the file's name has no ending that says its format"
        raise UserError(what, where=location, fix=f"convert it to one of {', '.join(ENDINGS)}")
    try:
        kind = kind_of(location)
        if kind != "file":
            what = {"folder": "this is a folder", "other": "this is no regular file"}.get(kind or "", "there is no such file")
            raise UserError(what, where=location, fix=_neighbours(location) or "name an existing data file")
    except OSError as error:
        raise UserError(f"cannot be read ({error})", where=location, fix="check the path and access") from error


def _neighbours(location: str) -> str:
    name = PurePosixPath(location).name
    near = difflib.get_close_matches(name, names_beside(location), n=1, cutoff=0.5)
    return f"the nearest name there is {near[0]!r}" if near else ""


def _opened_parquet(location: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(open_file(location))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(location, error) from error


def _damaged(location: str, error: Exception) -> UserError:
    return UserError(f"not a readable Parquet file ({str(error).splitlines()[0]})", where=location, fix="fetch or write it again")


def _parquet(location: str, wanted: Wanted) -> Iterator[pa.Table]:
    with _opened_parquet(location) as source:
        first = 1
        try:
            names = source.schema_arrow.names
            require_columns(names, wanted.required, location)
            for name in wanted.sources(names):
                if names.count(name) > 1:
                    what = f"{names.count(name)} columns are called {name!r}"
                    raise UserError(what, where=location, fix="give each column a name of its own")
            for batch in source.iter_batches(BATCH, columns=wanted.sources(names)):
                table = pa.Table.from_batches([batch])
                yield as_text(table, wanted, location, first)
                first += table.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged(location, error) from error


def _keys(rows: Iterator[text.Record]) -> dict[str, None]:
    return dict.fromkeys(key for _, row in rows for key in row)


def _tables(location: str, wanted: Wanted) -> Iterator[pa.Table]:
    rows = text.records(location)
    first = list(islice(rows, BATCH))
    found = text.header(location)
    if found is None and first:
        found = list(_keys(iter(first)))
        if any(item(name, found)[0] not in found for name in wanted.required):
            found = list(_keys(text.records(location)))  # a key may come late: only the whole file says what it has
    if found is not None:
        require_columns(found, wanted.required, location)
    rest = chain(first, rows)
    while batch := list(islice(rest, BATCH)):
        yield pa.table([_column(batch, name, wanted) for name in wanted.columns], names=list(wanted.columns))


def _column(batch: list[text.Record], name: str, wanted: Wanted) -> pa.Array:
    values = [_value(row, name, place, listed=name in wanted.lists) for place, row in batch]
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        for (place, _), value in zip(batch, values, strict=True):
            try:
                (value or "").encode()
            except UnicodeEncodeError as error:
                half = ascii((value or "")[error.start])
                what = f"{name!r} has half of a character, {half}, at {error.start}"
                raise UserError(what, where=place, fix="write the text whole, or without it") from None
        raise


def _value(row: dict[str, Any], name: str, where: str, *, listed: bool) -> str | None:
    column, index = item(name, row)
    value = row.get(column)
    if index is not None and isinstance(value, list):
        value = value[index] if len(value) > index else None
    if value is None or isinstance(value, str):
        return value
    if listed and isinstance(value, list):
        return _json(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{name!r} is a {type(value).__name__}, not text", where=where, fix=_fix(isinstance(value, dict | list)))
