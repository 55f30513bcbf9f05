"""Which files a path, a URI or a pattern names. The plan, the stages and the benchmarks' items all ask here.

``*`` is the only wildcard: it stands for any characters within one part of a path, a folder's name included, and, as in
a shell, not for the dot of a hidden file. Everything else, brackets and question marks too, stands for itself.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from cft_ray.errors import UserError
from cft_ray.storage.files import Found, file_at, listed, placed
from cft_ray.storage.location import is_uri, local_path


def matching(pattern: str) -> list[Found]:
    """The files that a path, a URI or a pattern of either names, sorted by path; folders are not among them.

    Raises:
        UserError: a URI that cannot be understood, a storage that cannot be read, or a file whose name is no UTF-8.
        OSError: a folder cannot be listed.
    """
    if not is_uri(pattern):
        return _local(local_path(pattern))
    storage, parts = placed(pattern)
    fixed = next((place for place, part in enumerate(parts) if "*" in part), None)
    if fixed is None:
        return file_at(pattern)
    folders = [parts[:fixed]]
    for part in parts[fixed:-1]:
        pattern_of = wildcard(part)
        entries = [(folder, entry) for folder in folders for entry in storage.list(*folder)]
        folders = [(*folder, entry.name) for folder, entry in entries if not entry.is_file and pattern_of.fullmatch(entry.name)]
    last = wildcard(parts[-1])
    found = [file for folder in folders for file in listed(storage, folder) if last.fullmatch(file.path.rpartition("/")[2])]
    return sorted(found, key=lambda file: file.path)


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
    return Found(text, text, status.st_size, status.st_mtime_ns)
