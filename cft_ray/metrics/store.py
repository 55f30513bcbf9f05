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

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cft_ray.artifacts.storage import Storage
from cft_ray.errors import UserError
from cft_ray.metrics.keys import KeyRanges, merged
from cft_ray.metrics.schemas import KEY, SCHEMAS, conform, keyed

FOLDER = "tables"
FAN_IN = 32
"""files of one level that are merged into one of the next"""
LARGEST = 32 * 2**20
"""bytes of files merged at a time: what bounds the writer's memory"""
STALE_SECONDS = 3600.0
"""age at which a temporary file must be a crash's leaving"""
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
            if match := _OURS.fullmatch(info.base_name):
                self._levels.setdefault(int(match[1]), {})[info.base_name] = info.size
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
        """Write the union of some files, then remove them. Files that cannot be read stay, and stay out of it."""
        read = dict(_read(self.storage, self.name, SCHEMAS[self.name].names, names, vanished_ok=True))
        if read:
            self._write(min(level, 9), merged(list(read.values())))
        for name in names:
            self._levels[int(name[0])].pop(name)
        for name in read:
            self.storage.delete(FOLDER, self.name, name)

    def _write(self, level: int, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        name = f"{level}-{os.urandom(16).hex()}.parquet"
        self.storage.write(FOLDER, self.name, name, data=data)
        self._levels.setdefault(level, {})[name] = data.size

    def _remove_leavings(self) -> None:
        """Remove temporary files that a crash left, old enough to be nobody's."""
        for info in self.storage.list(FOLDER, self.name):
            hidden = info.type == fs.FileType.File and info.base_name.startswith(".")
            if hidden and info.mtime and (datetime.now(UTC) - info.mtime).total_seconds() > STALE_SECONDS:
                self.storage.delete(FOLDER, self.name, info.base_name)


def table_files(storage: Storage, name: str) -> list[fs.FileInfo]:
    """The Parquet files of a table; none where it has none yet."""
    found = storage.list(FOLDER, name)
    return [
        info for info in found if info.type == fs.FileType.File and info.extension == "parquet" and info.base_name[0] not in "._"
    ]


def read_files(storage: Storage, name: str, columns: list[str]) -> list[tuple[str, pa.Table]]:
    """Columns of every file of a table.

    A file that is not part of the table (cut short, other columns or types) is left out with a `DamagedFileWarning`:
    it must not hide the good ones, and rows lost with it can be sent again.

    Args:
        storage: where the tables lie.
        name: table.
        columns: which columns; their order is kept.

    Returns:
        (file name, its rows) of each readable file.
    """
    for _ in range(20):
        try:
            return _read(storage, name, columns, [info.base_name for info in table_files(storage, name)])
        except FileNotFoundError:  # a compaction removed it since the listing: its rows are in a new file
            time.sleep(0.05)
    return _read(storage, name, columns, [info.base_name for info in table_files(storage, name)], vanished_ok=True)


def _read(
    storage: Storage, name: str, columns: list[str], files: list[str], *, vanished_ok: bool = False
) -> list[tuple[str, pa.Table]]:
    def read(file: str) -> pa.Table | None:
        path = storage.path(FOLDER, name, file)
        try:
            with storage.filesystem.open_input_file(path) as source:
                parquet = pq.ParquetFile(source)
                there = [column for column in columns if column in parquet.schema_arrow.names]
                return conform(name, parquet.read(there), columns)
        except FileNotFoundError:
            if vanished_ok:
                return None
            raise
        except (pa.ArrowException, OSError, UserError) as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"{path} is left out, it is no readable part of the table: {reason}", DamagedFileWarning, stacklevel=2)
            return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        return [(file, rows) for file, rows in zip(files, pool.map(read, files), strict=True) if rows is not None]
