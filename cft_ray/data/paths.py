"""Which files a path, a URI or a pattern names. The plan, the stages and the benchmarks' items all ask here.

``*`` is the only wildcard: it stands for any characters within one part of a path, a folder's name included, and, as in
a shell, not for the dot of a hidden file. Everything else, brackets and question marks too, stands for itself. In a URI,
``?name=value`` at the end are options of the file system. Local files need no pyarrow, which a first plan does not load.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from cft_ray.errors import UserError

if TYPE_CHECKING:
    from pyarrow import fs

_OPTIONS = re.compile(r"\?\w+=[^/]*$")


@dataclass(frozen=True)
class Found:
    """A file that a pattern names.

    Args:
        filesystem: None: this machine's.
        path: inside it.
        location: path or URI by which it can be opened again (`open_location`).
        size: bytes.
        changed: time of change in nanoseconds; 0: unknown.
    """

    filesystem: "fs.FileSystem | None"
    path: str
    location: str
    size: int
    changed: int


def is_uri(path: str) -> bool:
    """Whether a path names another file system (``s3://…``); ``file://`` is this machine's."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> Path:
    """A path of this machine, absolute, so that it means the same wherever a stage runs on it."""
    return Path(path.removeprefix("file://")).expanduser().absolute()


def open_location(location: str) -> "tuple[fs.FileSystem, str]":
    """The file system of a path or URI, and the path inside it.

    Raises:
        UserError: an unknown scheme, or a URI that cannot be understood.
    """
    import pyarrow as pa
    from pyarrow import fs

    if not is_uri(location):
        return fs.LocalFileSystem(), str(local_path(location))
    options = match.group() if (match := _OPTIONS.search(location)) else ""
    scheme, _, rest = location.removesuffix(options).partition("://")
    try:
        # What a file may be called and a URI may not hold is quoted; what is quoted already stays so.
        return fs.FileSystem.from_uri(f"{scheme}://{quote(rest, safe='/%:@')}{options}")
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot be opened ({reason})", where=location, fix="use a path, file://, s3:// or gs:// URI") from error


def matching(pattern: str) -> list[Found]:
    """The files that a path, a URI or a pattern of either names, sorted by path; folders are not among them.

    Raises:
        UserError: a URI that cannot be opened, or a file whose name is no UTF-8.
        OSError: a folder cannot be listed.
    """
    if not is_uri(pattern):
        return _local(local_path(pattern))
    from pyarrow import fs

    filesystem, whole = open_location(pattern)
    options = match.group() if (match := _OPTIONS.search(pattern)) else ""
    root = pattern.removesuffix(options)
    parts = whole.split("/")
    fixed = next((place for place, part in enumerate(parts) if "*" in part), len(parts))
    infos = [filesystem.get_file_info("/".join(parts[:fixed]))]
    for part in parts[fixed:]:
        named = wildcard(part)
        folders = [info.path for info in infos if info.type == fs.FileType.Directory]
        listed = (filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)) for folder in folders)
        infos = [info for inside in listed for info in inside if named.fullmatch(info.base_name)]
    scheme = root.partition("://")[0]
    return [
        Found(filesystem, info.path, f"{scheme}://{quote(info.path)}{options}", info.size, info.mtime_ns or 0)
        for info in sorted(infos, key=lambda info: info.path)
        if info.type == fs.FileType.File
    ]


def from_wildcard(pattern: str) -> str:
    """The end of a pattern that starts with the first part that has a ``*``; without one, the last part."""
    parts = pattern.split("/")
    return "/".join(parts[next((place for place, part in enumerate(parts) if "*" in part), len(parts) - 1) :])


def named(pattern: str, path: str) -> bool:
    """Whether a pattern names a file of a repository; a pattern of fewer parts is of the path's last ones."""
    parts = pattern.split("/")
    last = path.split("/")[-len(parts) :]
    return len(last) == len(parts) and all(wildcard(part).fullmatch(name) for part, name in zip(parts, last, strict=True))


def wildcard(part: str) -> re.Pattern[str]:
    """What a part of a pattern matches: a whole name, with anything in place of ``*``."""
    hidden = "" if part.startswith(".") else r"(?!\.)"
    return re.compile(hidden + ".*".join(map(re.escape, part.split("*"))), re.DOTALL)


def _local(pattern: Path) -> list[Found]:
    paths: Iterable[Path] = [Path(pattern.anchor)]
    for part in pattern.parts[1:]:
        if "*" not in part:
            paths = [path / part for path in paths]
            continue
        named = wildcard(part)
        folders = [path for path in paths if path.is_dir()]
        paths = [path / name for path in folders for name in os.listdir(path) if named.fullmatch(name)]  # noqa: PTH208 - names
    return [_described(path) for path in sorted(paths) if path.is_file()]


def _described(path: Path) -> Found:
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("the file's name is no UTF-8", where=ascii(text), fix="give it another name") from None
    status = path.stat()
    return Found(None, text, text, status.st_size, status.st_mtime_ns)
