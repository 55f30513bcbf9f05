"""One table as a folder of immutable Parquet files, and the one rule that makes every crash harmless.

*A table is the union of its files' rows by key.* Writing adds a whole file; compacting writes the union of some files
into a new one and then removes them. Between any two of these steps the union is the same, so nothing has to be
undone or recovered: a reader sees each row once, and rows that lie doubled in two files for a moment go at the next
compaction. Two writers on one folder need no agreement either.

File names are ``{level}-{random}.parquet``: 0 is what was flushed, a higher level what was merged from lower ones. 32
files of one level become one of the next, so a table stays at a few dozen files and each row is rewritten a handful of
times. Files of other names are read and left where they are. No Ray here.
"""

import os
import re
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cft_ray.errors import UserError
from cft_ray.metrics.keys import KeyRanges, merged
from cft_ray.metrics.schemas import KEY, SCHEMAS, conform, keyed
from cft_ray.storage.entry import Entry
from cft_ray.storage.errors import StorageError
from cft_ray.storage.root import Storage

FOLDER = "tables"
FAN_IN = 32
"""files of one level that are merged into one of the next"""
LARGEST = 32 * 2**20
"""bytes of files merged at a time: what bounds the writer's memory"""
STALE_SECONDS = 3600.0
"""age at which a temporary file must be a crash's leaving"""
_LOOKS = 20
"""listings after which files that vanish between listing and reading are an error"""
_OURS = re.compile(r"(\d)-[0-9a-f]{32}\.parquet")


class DamagedFileWarning(UserWarning):
    """A file in a table's folder is no readable part of the table (cut short, foreign); it was left out."""


@dataclass(frozen=True)
class Append:
    """Rows to add: ``body`` has a table's columns without the key; row i has the number ``sequence + i``."""

    fingerprint: str
    attempt: int
    sequence: int
    body: pa.Table


class TableStore:
    """The writer's side of one table. Not for concurrent use within a process.

    Args:
        storage: where the tables lie.
        name: table, a key of `SCHEMAS`.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.name = storage, name
        self._keys = KeyRanges()
        self._levels: dict[int, dict[str, int]] = {}
        """level -> file name -> bytes"""
        for info in table_files(storage, name):
            if match := _OURS.fullmatch(info.name):
                self._levels.setdefault(int(match[1]), {})[info.name] = info.size or 0
        for _, rows in read_files(storage, name, list(KEY)):
            self._keys.add_rows(rows)
        self._remove_leavings()

    def commit(self, appends: Iterable[Append]) -> int:
        """Write the rows that the table does not hold yet as one file; they are durable when this returns.

        Returns:
            how many rows were written.

        Raises:
            UserError: the storage cannot be written to; the table is as before.
        """
        taken, parts = KeyRanges(), []
        for append in appends:
            key = append.fingerprint, append.attempt
            for start, stop in list(self._keys.missing(*key, append.sequence, append.sequence + append.body.num_rows)):
                for first, last in list(taken.missing(*key, start, stop)):
                    rows = append.body.slice(first - append.sequence, last - first)
                    parts.append(keyed(rows, fingerprint=append.fingerprint, attempt=append.attempt, sequence=first))
                    taken.add(*key, first, last)
        if not parts:
            return 0
        self._write(0, pa.concat_tables(parts))
        self._keys.update(taken)
        return len(taken)

    def merge_levels(self) -> None:
        """Merge every level that has its `FAN_IN` files; cheap where none has."""
        for level in sorted(self._levels):
            files = self._levels[level]
            if len(files) >= FAN_IN and sum(files.values()) <= LARGEST:
                self._merge(list(files), level + 1)

    def compact(self) -> None:
        """Merge everything that is ours into as few files as `LARGEST` allows."""
        top = max(self._levels, default=0)
        batch: list[str] = []
        size = 0
        for name, length in [item for level in sorted(self._levels) for item in self._levels[level].items()]:
            if batch and size + length > LARGEST:
                self._merge(batch, top)
                batch, size = [], 0
            batch.append(name)
            size += length
        if len(batch) > 1:
            self._merge(batch, top)

    def _merge(self, names: list[str], level: int) -> None:
        """Write the union of some files, then remove them. Damaged files stay, and stay out of it.

        Columns that this version does not know, of a newer one's files, are kept. Where two files hold such a column in
        different types, the files stay as they are.
        """
        read = dict(_read(self.storage, self.name, None, names, vanished_ok=True))
        if read:
            try:
                union = merged(list(read.values()))
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                read = {}
            else:
                self._write(min(level, 9), union)
        for name in names:
            self._levels[int(name[0])].pop(name)
        for name in read:
            self.storage.delete(FOLDER, self.name, name)

    def _write(self, level: int, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        name = f"{level}-{os.urandom(16).hex()}.parquet"
        self.storage.write(FOLDER, self.name, name, data=data)
        self._levels.setdefault(level, {})[name] = len(data)

    def _remove_leavings(self) -> None:
        """Remove temporary files that a crash left, old enough to be nobody's."""
        for info in self.storage.list(FOLDER, self.name):
            hidden = info.is_file and info.name.startswith(".")
            if hidden and info.changed and (datetime.now(UTC) - info.changed).total_seconds() > STALE_SECONDS:
                self.storage.delete(FOLDER, self.name, info.name)


def table_files(storage: Storage, name: str) -> list[Entry]:
    """The Parquet files of a table; none where it has none yet."""
    found = storage.list(FOLDER, name)
    return [info for info in found if info.is_file and info.name.endswith(".parquet") and info.name[0] not in "._"]


def read_files(storage: Storage, name: str, columns: list[str]) -> list[tuple[str, pa.Table]]:
    """Columns of every file of a table.

    A file that is not part of the table (cut short, other columns or types) is left out with a `DamagedFileWarning`:
    it must not hide the good ones, and rows lost with it can be sent again. A file that cannot be *read* is another
    matter: its rows exist, so an answer without them would be wrong.

    Args:
        storage: where the tables lie.
        name: table.
        columns: which columns; their order is kept.

    Returns:
        (file name, its rows) of each sound file.

    Raises:
        UserError: the storage did not give a file, or its files changed, however often it was asked.
    """
    for _ in range(_LOOKS):
        try:
            return _read(storage, name, columns, [info.name for info in table_files(storage, name)])
        except FileNotFoundError:  # a compaction removed it since the listing: its rows are in a new file
            time.sleep(0.05)
    raise UserError("the table's files change faster than they are read", where=storage.location(FOLDER, name), fix="try again")


def _read(
    storage: Storage, name: str, columns: list[str] | None, files: list[str], *, vanished_ok: bool = False
) -> list[tuple[str, pa.Table]]:
    """As `read_files`, of given files; ``columns``: None for all, those that this version does not know behind the others."""

    def read(file: str) -> pa.Table | None:
        path = storage.location(FOLDER, name, file)
        try:
            return _rows_of(storage, name, columns, file)
        except FileNotFoundError:
            if vanished_ok:
                return None
            raise
        except StorageError:
            raise
        except (pa.ArrowException, OSError, UserError) as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"{path} is left out, it is no readable part of the table: {reason}", DamagedFileWarning, stacklevel=2)
            return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        return [(file, rows) for file, rows in zip(files, pool.map(read, files), strict=True) if rows is not None]


def _rows_of(storage: Storage, name: str, columns: list[str] | None, file: str) -> pa.Table:
    """A file's rows. What pyarrow raises tells a damaged file and a failing disk badly apart: both may be an OSError. So the
    bytes are fetched then: if the storage gives them, what is wrong with them is wrong with the file.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the storage did not give it.
        pa.ArrowException, OSError, UserError: it is no part of the table.
    """
    try:
        with storage.open(FOLDER, name, file) as source:
            return _rows(name, columns, source)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError):
        data = storage.read(FOLDER, name, file)
    if data is None:
        raise FileNotFoundError(file)
    return _rows(name, columns, pa.BufferReader(data))


def _rows(name: str, columns: list[str] | None, source: BinaryIO | pa.NativeFile) -> pa.Table:
    parquet = pq.ParquetFile(source)
    there = parquet.schema_arrow.names
    known = columns if columns is not None else SCHEMAS[name].names
    rows = conform(name, parquet.read([column for column in known if column in there]), known)
    if columns is None and (foreign := [column for column in there if column not in known]):
        more = parquet.read(foreign)
        for column in foreign:
            rows = rows.append_column(more.schema.field(column), more[column])
    return rows
