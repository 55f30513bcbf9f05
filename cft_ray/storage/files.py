"""Single files by path or URI, wherever they lie: what a grid names is looked for, opened and read through here.

Parquet is scanned through the same door: a reader of it asks for a few ranges, which `Storage.open` fetches.
"""

from dataclasses import dataclass
from typing import BinaryIO

from cft_ray.storage.entry import Entry
from cft_ray.storage.location import understood
from cft_ray.storage.root import Storage


@dataclass(frozen=True)
class Found:
    """A file that a pattern names.

    Args:
        path: on this machine, or inside its bucket.
        location: path or URI by which it can be opened again.
        size: bytes.
        changed: time of change in nanoseconds; 0: unknown.
    """

    path: str
    location: str
    size: int
    changed: int


def placed(location: str) -> tuple[Storage, tuple[str, ...]]:
    """The storage that holds a place (the bucket, or all of this machine), and the parts of the path inside it.

    Raises:
        UserError: a URI that cannot be understood.
    """
    scheme, bucket, path = understood(location)
    parts = tuple(part for part in path.split("/") if part)
    return Storage("/" if scheme == "file" else f"{scheme}://{bucket}"), parts


def open_file(location: str) -> BinaryIO:
    """A file to be read at any place.

    Raises:
        FileNotFoundError: there is none.
        UserError: a URI that cannot be understood; the storage cannot be read.
    """
    storage, parts = placed(location)
    return storage.open(*parts)


def kind_of(location: str) -> str | None:
    """``file``, ``folder``, ``other`` for pipes, devices and sockets, which are not read; None where there is nothing.

    Raises:
        UserError: as `open_file`.
    """
    storage, parts = placed(location)
    found = storage.kind(*parts)
    return "other" if found == "file" and storage.entry(*parts) is None else found


def names_beside(location: str) -> list[str]:
    """What lies in the folder of a file, whether or not the file is there."""
    storage, parts = placed(location)
    return [entry.name for entry in storage.list(*parts[:-1])]


def file_at(location: str) -> list[Found]:
    """The file of that name, if there is one.

    Raises:
        UserError: as `open_file`.
    """
    storage, parts = placed(location)
    entry = storage.entry(*parts) if parts else None
    return [] if entry is None else [_found(storage, parts, entry)]


def files_below(folder: str) -> list[Found]:
    """Every file below a folder, sorted by path; empty where there is none.

    Raises:
        UserError: as `open_file`.
    """
    return listed(*placed(folder), recursive=True)


def listed(storage: Storage, parts: tuple[str, ...], *, recursive: bool = False) -> list[Found]:
    """The files in a folder, sorted by path; ``recursive``: all below it."""
    files = (entry for entry in storage.list(*parts, recursive=recursive) if entry.is_file)
    return sorted((_found(storage, (*parts, *entry.name.split("/")), entry) for entry in files), key=lambda file: file.path)


def digest(location: str) -> str:
    """SHA-256 of a file's content, which is read and not kept.

    Raises:
        FileNotFoundError: there is none.
        UserError: as `open_file`.
    """
    storage, parts = placed(location)
    return storage.digest(*parts)


def _found(storage: Storage, parts: tuple[str, ...], entry: Entry) -> Found:
    changed = 0 if entry.changed is None else int(entry.changed.timestamp() * 1e9)
    return Found(storage.path(*parts), storage.location(*parts), entry.size or 0, changed)
