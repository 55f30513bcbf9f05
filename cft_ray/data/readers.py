"""Reading tabular files of any of four formats as a stream of Arrow tables, from a folder or an object store.

What a file holds is decided by its name's ending, never by trying; formats that can carry code (pickles, loading
scripts) are refused with all others that are not named here. A reader gives only the columns it is asked for, as text,
with nulls where the file has nulls; what is not text or a whole number is an error that names file, row and column.
"""

import csv
import difflib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cft_ray.errors import UserError

BATCH = 8192
"""rows of one table"""
_COMPRESSED = {".gz", ".bz2", ".zst", ".lz4"}

Reader = Callable[[fs.FileSystem, str, str, Collection[str]], Iterator[pa.Table]]


def read_file(location: str, columns: Collection[str]) -> Iterator[pa.Table]:
    """The wanted columns of one file, in the file's order.

    Args:
        location: path or URI (``s3://…``); ``.parquet``, ``.jsonl``, ``.ndjson``, ``.json`` (an object a line, or an
            array of objects, which is read whole) or ``.csv`` with a header line; the text formats also compressed
            (``.gz``, ``.bz2``, ``.zst``, ``.lz4``).
        columns: names that the file must have.

    Yields:
        Tables of at most `BATCH` rows, all columns nullable text.

    Raises:
        UserError: no such file, unknown format, missing column, a value that is not text, undecodable bytes, broken
            syntax.
    """
    reader = _reader(location)
    filesystem, path = open_location(location)
    kind = filesystem.get_file_info(path).type
    if kind != fs.FileType.File:
        what = "this is a folder" if kind == fs.FileType.Directory else "there is no such file"
        raise UserError(what, where=location, fix=_neighbours(filesystem, path) or "name an existing data file")
    yield from reader(filesystem, path, location, columns)


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path inside it.

    Raises:
        UserError: an unknown scheme.
    """
    if "://" not in location:
        return fs.LocalFileSystem(), location
    try:
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"cannot be opened ({error})", where=location, fix="use a path, file://, s3:// or gs:// URI") from error


def item(name: str, found: Collection[str]) -> tuple[str, int | None]:
    """What a wanted column names: ``turns[0]`` is item 0 of the lists in ``turns``, unless a column is called so itself."""
    column, bracket, index = name.removesuffix("]").rpartition("[")
    return (column, int(index)) if name.endswith("]") and bracket and index.isdigit() and name not in found else (name, None)


def require_columns(found: Collection[str], wanted: Collection[str], where: str) -> None:
    """Refuse a file that lacks a wanted column, naming the nearest that it has.

    Raises:
        UserError: always the first missing one.
    """
    for name in (item(name, found)[0] for name in wanted):
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
            fix = f"map it to {near[0]!r}" if near else "map the canonical columns to columns that the file has"
            raise UserError(f"no column {name!r}; columns found: {', '.join(map(repr, found)) or 'none'}", where=where, fix=fix)


def as_text(table: pa.Table, columns: Collection[str], where: str) -> pa.Table:
    """The columns as nullable text; whole numbers (ids) are written out; a list that is too short has null for its item.

    Raises:
        UserError: a column of another type.
    """
    arrays = []
    for name in columns:
        source, index = item(name, table.column_names)
        column = table.column(source)
        listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if index is not None and listed:
            values = [row[index] if row is not None and len(row) > index else None for row in column.to_pylist()]
            column = pa.chunked_array([pa.array(values, column.type.value_type)])
        if not _textual(column.type):
            fix = f"map one of its items, {name + '[0]'!r}" if listed and index is None else "map a column of text"
            raise UserError(f"column {name!r} is {column.type}, not text", where=where, fix=fix)
        arrays.append(column.cast(pa.string()))
    return pa.table(arrays, names=list(columns))


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


def _reader(location: str) -> Reader:
    suffixes = PurePosixPath(location).suffixes
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    ending = suffixes[-1].lower() if suffixes else ""
    if ending not in _READERS:
        raise UserError(
            f"files ending in {ending!r} are not read" if ending else "the file's name has no ending that says its format",
            where=location,
            fix=f"convert it to one of {', '.join(_READERS)}",
        )
    return _READERS[ending]


def _neighbours(filesystem: fs.FileSystem, path: str) -> str:
    folder, name = PurePosixPath(path).parent, PurePosixPath(path).name
    if filesystem.get_file_info(str(folder)).type != fs.FileType.Directory:
        return ""
    names = [info.base_name for info in filesystem.get_file_info(fs.FileSelector(str(folder)))]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"the nearest name there is {near[0]!r}" if near else ""


def _parquet(filesystem: fs.FileSystem, path: str, where: str, columns: Collection[str]) -> Iterator[pa.Table]:
    with filesystem.open_input_file(path) as file:
        try:
            with pq.ParquetFile(file) as source:
                require_columns(source.schema_arrow.names, columns, where)
                names = source.schema_arrow.names
                for batch in source.iter_batches(BATCH, columns=[*dict.fromkeys(item(name, names)[0] for name in columns)]):
                    yield as_text(pa.Table.from_batches([batch]), columns, where)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"not a readable Parquet file ({error})", where=where, fix="fetch or write it again") from error


def _json_lines(filesystem: fs.FileSystem, path: str, where: str, columns: Collection[str]) -> Iterator[pa.Table]:
    with filesystem.open_input_stream(path) as file:
        records = (
            (f"{where}: line {number}", _parsed(_decoded(line, f"{where}: line {number}"), f"{where}: line {number}"))
            for number, line in enumerate(io.BufferedReader(_raw(file)), start=1)
            if line.strip()
        )
        yield from _tables(records, where, columns)


def _json(filesystem: fs.FileSystem, path: str, where: str, columns: Collection[str]) -> Iterator[pa.Table]:
    with filesystem.open_input_stream(path) as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not start.startswith(b"["):  # many files called .json hold an object a line
            yield from _json_lines(filesystem, path, where, columns)
            return
        rows = _parsed(_decoded(start + file.read(), where), where)
    yield from _tables(((f"{where}: row {number}", row) for number, row in enumerate(rows, start=1)), where, columns)


def _csv(filesystem: fs.FileSystem, path: str, where: str, columns: Collection[str]) -> Iterator[pa.Table]:
    with filesystem.open_input_stream(path) as file:
        lines = (_decoded(line, f"{where}: line {number}") for number, line in enumerate(io.BufferedReader(_raw(file)), start=1))
        rows = csv.DictReader(lines, strict=True)
        try:
            require_columns([name.removeprefix("\ufeff") for name in rows.fieldnames or ()], columns, where)
            rows.fieldnames = [name.removeprefix("\ufeff") for name in rows.fieldnames or ()]
            yield from _tables(((f"{where}: line {rows.line_num}", row) for row in rows), where, columns)
        except csv.Error as error:
            raise UserError(
                f"broken CSV ({error})", where=f"{where}: line {rows.line_num}", fix="quote fields properly"
            ) from error


def _raw(file: Any) -> io.RawIOBase:
    # Arrow's streams are file-like; the standard library's line buffering wants to see a raw stream.
    return file


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {data[error.start]:#04x} at {error.start} is no UTF-8", where=where, fix="convert the file to UTF-8"
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"broken JSON ({error})", where=where, fix="mend the line, or write the file again") from error


def _tables(records: Iterable[tuple[str, Any]], where: str, columns: Collection[str]) -> Iterator[pa.Table]:
    records = iter(records)
    first = list(islice(records, BATCH))
    found = dict.fromkeys(key for _, row in first if isinstance(row, dict) for key in row)
    if first and isinstance(first[0][1], dict):
        require_columns(list(found), columns, where)
    rest = chain(first, records)
    while batch := list(islice(rest, BATCH)):
        arrays = [pa.array([_text(row, name, place) for place, row in batch], pa.string()) for name in columns]
        yield pa.table(arrays, names=list(columns))


def _text(row: Any, name: str, where: str) -> str | None:
    if not isinstance(row, dict):
        raise UserError(f"a {type(row).__name__}, not an object", where=where, fix="one object of named values per row")
    column, index = item(name, row)
    value = row.get(column)
    if index is not None and isinstance(value, list):
        value = value[index] if len(value) > index else None
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{name!r} is a {type(value).__name__}, not text", where=where, fix="map a column of text")


_READERS: dict[str, Reader] = {
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
}
