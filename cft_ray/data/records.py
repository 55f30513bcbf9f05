"""Text files as streams of records: JSON lines, a JSON array, CSV; each record with its place for messages.

A file is read rightly or refused with its name and line: nothing is guessed, mended or left out here. A byte-order mark
is skipped, wherever files with one were joined; other encodings than UTF-8 are refused by name.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa

from cft_ray.errors import UserError
from cft_ray.storage.files import open_file

Record = tuple[str, dict[str, Any]]
"""(file and line, the record)"""
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_MARK = b"\xef\xbb\xbf"
_MAGIC = {
    b"\x1f\x8b": "gzip data: its name must end in .gz",
    b"BZh": "bzip2 data: its name must end in .bz2",
    b"\x28\xb5\x2f\xfd": "zstd data: its name must end in .zst",
    b"\x04\x22\x4d\x18": "lz4 data: its name must end in .lz4",
    b"PAR1": "Parquet: its name must end in .parquet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_BUFFER = 1 << 20
csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than what other formats may hold


def ending(location: str) -> str:
    """What a file's name says of its format, without the ending that says how it is compressed: ``.jsonl``."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(location).suffixes]
    if suffixes and suffixes[-1] in _CODECS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def records(location: str) -> Iterator[Record]:
    """The records of a text file whose `ending` is one of `FORMATS`.

    Raises:
        UserError: no UTF-8, broken syntax, a record that is no object, a key or column twice, a row of CSV that has not as
            many fields as the header, compressed data that is cut short or damaged, an empty file.
    """
    return FORMATS[ending(location)](location)


def _json_lines(location: str) -> Iterator[Record]:
    with _text(location) as file:
        for number, line in enumerate(file, start=1):
            place = f"{location}: line {number}"
            if (text := _decoded(line, place)).strip():
                yield place, _object(_parsed(text, place), place)


def _json(location: str) -> Iterator[Record]:
    with _text(location) as file:
        array = file.peek(_BUFFER).lstrip(_MARK + b" \t\r\n").startswith(b"[")
        rows = _parsed(_decoded(file.read(), location), location) if array else None
    if rows is None:  # many files called .json hold an object a line
        yield from _json_lines(location)
    for number, row in enumerate(rows or (), start=1):
        yield (place := f"{location}: row {number}"), _object(row, place)


def _csv(location: str) -> Iterator[Record]:
    with _text(location) as file:
        rows = csv.reader((_decoded(line, f"{location}: line {n}") for n, line in enumerate(file, start=1)), strict=True)
        try:
            names = next(rows, [])
            if twice := [name for name, count in Counter(names).items() if name and count > 1]:
                raise UserError(
                    f"the header names column {twice[0]!r} {names.count(twice[0])} times",
                    where=f"{location}: line 1",
                    fix="give each column a name of its own",
                )
            for row in rows:
                if not row:
                    continue
                place = f"{location}: line {rows.line_num}"
                if len(row) != len(names):
                    raise UserError(
                        f"{len(row)} fields where the header has {len(names)}",
                        where=place,
                        fix="separate fields with commas, and quote those that have commas, quotes or line breaks in them",
                    )
                yield place, dict(zip(names, row, strict=True))
        except csv.Error as error:
            where = f"{location}: line {rows.line_num}"
            raise UserError(f"broken CSV ({error})", where=where, fix="quote fields properly") from error


FORMATS: dict[str, Callable[[str], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
}
"""Ending -> reader."""


def header(location: str) -> list[str] | None:
    """The column names of a CSV file, in their order; None for other formats, which have no header."""
    if ending(location) != ".csv":
        return None
    with _text(location) as file:
        lines = (_decoded(line, f"{location}: line {number}") for number, line in enumerate(file, start=1))
        try:
            return next(csv.reader(lines, strict=True), [])
        except csv.Error as error:
            raise UserError(f"broken CSV ({error})", where=f"{location}: line 1", fix="quote fields properly") from error


@contextmanager
def _text(location: str) -> Iterator[io.BufferedReader]:
    """The bytes of a text file, unpacked. Errors of reading inside the block name the file."""
    codec = _CODECS.get(PurePosixPath(location).suffix.lower())
    try:
        with open_file(location) as raw, _unpacked(raw, codec) as file:
            if codec is None:
                _refuse_foreign(file.peek(4)[:4], location)
            if not file.peek(1):
                raise UserError("the file is empty", where=location, fix="fetch or write it again, or take it out of the files")
            yield file
    except (OSError, pa.ArrowException) as error:
        what = f"cut short, or no {codec} data" if codec else "cannot be read"
        raise UserError(f"{what} ({str(error).splitlines()[0]})", where=location, fix="fetch or write it again") from error


def _unpacked(raw: BinaryIO, codec: str | None) -> io.BufferedReader:
    # Arrow's streams are file-like; the standard library's line buffering wants to see a raw stream.
    stream: Any = raw if codec is None else pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec)
    return io.BufferedReader(stream, _BUFFER)


def _refuse_foreign(start: bytes, location: str) -> None:
    """Bytes that are no UTF-8 text, by what they begin with."""
    what = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    if what is None and len(start) > 1 and (start[0] == 0) != (start[1] == 0):
        what = "UTF-16 text"
    if what is not None:
        fix = "convert the file to UTF-8" if "UTF-16" in what else "rename it, and name it so in the grid"
        raise UserError(f"the file holds {what}", where=location, fix=fix)


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.removeprefix(_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {data.removeprefix(_MARK)[error.start]:#04x} at {error.start} is no UTF-8",
            where=where,
            fix="convert the file to UTF-8",
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4,300 digits
        raise UserError(f"broken JSON ({error})", where=where, fix="mend the line, or write the file again") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return found


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"a {type(value).__name__}, not an object", where=where, fix="one object of named values per row")
    return value
