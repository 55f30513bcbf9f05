"""Local files and models are known by their content: SHA-256 over names and contents, however the path reads.

Hashing gigabytes for every plan would be slow, so a file's digest is kept in the user's cache folder under its path, size
and time of change. The cache may be deleted at any time.
"""

import contextlib
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cft_ray.data.languages import filled, names_language
from cft_ray.errors import UserError
from cft_ray.machine import machine_folder

_BLOCK = 1 << 20


class Digests:
    """Digests of files, with the cache read once and written by `save`.

    Args:
        cache: the cache's file; none: ``digests.json`` in `machine_folder`.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache or machine_folder("digests.json")
        self._known: dict[str, str] | None = None
        self._changed = False

    def files(self, pattern: str, languages: Sequence[str], *, where: str) -> str:
        """Digest of the files that a data set's pattern names.

        Args:
            pattern: path or URI; ``{language}`` or ``{flores}`` stands for each language in turn, ``*`` as in a shell.
            languages: for ``{language}``.
            where: place in the grid, for messages.

        Raises:
            UserError: a language, or the pattern, finds no file; a file cannot be read.
        """
        parts: list[tuple[str, str]] = []
        for language in languages if names_language(pattern) else [""]:
            location = filled(pattern, language)
            with _reading(location, where):
                found = list(_find(location))
            if not found:
                raise UserError(f"there is no file {location}", where=where, fix="a path or URI of files that exist")
            for filesystem, path, size, changed in found:
                parts.append((f"{language}/{PurePosixPath(path).name}", self._file(filesystem, path, size, changed, where)))
        return _over(parts)

    def folder(self, path: str, *, where: str, mark: str = "config.json") -> str:
        """Digest of a model's folder, files below folders included.

        Args:
            path: of the folder, or its URI.
            where: place in the grid, for messages.
            mark: file that every such folder has.

        Raises:
            UserError: no such folder, or no ``mark`` in it.
        """
        with _reading(path, where):
            files = list(_below(path))
        names = {PurePosixPath(file).name for _, file, _, _ in files}
        if mark not in names:
            what = f"holds no {mark}" if files else "does not exist, or is empty"
            raise UserError(f"the model's folder {path} {what}", where=where, fix="a folder written by save_pretrained")
        start = os.path.commonpath([str(PurePosixPath(file).parent) for _, file, _, _ in files])
        return _over((os.path.relpath(file, start), self._file(fs, file, size, at, where)) for fs, file, size, at in files)

    def save(self) -> None:
        """Write the cache, if it grew. A cache that cannot be written costs time, nothing else."""
        if not self._changed or self._known is None:
            return
        with contextlib.suppress(OSError):
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.cache.parent, prefix=".digests")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self._known, file)
            Path(temporary).replace(self.cache)
            self._changed = False

    def _file(self, filesystem: Any, path: str, size: int, changed: int, where: str) -> str:
        key = f"{path}|{size}|{changed}" if changed else ""
        known = self._load()
        if key and key in known:
            return known[key]
        with _reading(path, where):
            digest = _sha256(filesystem, path)
        if key:
            known[key] = digest
            self._changed = True
        return digest

    def _load(self) -> dict[str, str]:
        if self._known is None:
            try:
                values = json.loads(self.cache.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                values = {}
            self._known = {str(k): str(v) for k, v in values.items()} if isinstance(values, dict) else {}
        return self._known


@contextlib.contextmanager
def _reading(path: str, where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: pyarrow's, for a URI that it does not understand
        raise UserError(f"cannot read {path}: {error}", where=where, fix="a readable file, or access to it") from None


_Found = tuple[Any, str, int, int]
"""Filesystem (None: this machine's), path, bytes, time of change in nanoseconds (0: unknown)."""


def is_uri(path: str) -> bool:
    """Whether a path names another filesystem (``s3://…``); ``file://`` is this machine's."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> Path:
    """A path of this machine, absolute, so that it means the same wherever a stage runs on it."""
    return Path(path.removeprefix("file://")).expanduser().absolute()


def _find(pattern: str) -> Iterable[_Found]:
    if is_uri(pattern):
        from fnmatch import fnmatchcase

        folder, _, name = pattern.rpartition("/")
        return [item for item in _below(folder, recursive=False) if fnmatchcase(PurePosixPath(item[1]).name, name)]
    path = local_path(pattern)
    if "*" in pattern:
        found = [Path(item) for item in sorted(glob.glob(str(path))) if Path(item).is_file()]  # noqa: PTH207 - an absolute pattern
    else:
        found = [path] if path.is_file() else []
    return [(None, str(item), item.stat().st_size, item.stat().st_mtime_ns) for item in found]


def _below(folder: str, *, recursive: bool = True) -> Iterable[_Found]:
    if not is_uri(folder):
        files = sorted(item for item in local_path(folder).rglob("*") if item.is_file())
        return [(None, str(item), item.stat().st_size, item.stat().st_mtime_ns) for item in files]
    from pyarrow import fs  # only remote files need it, and it is slow to import

    filesystem, path = fs.FileSystem.from_uri(folder)
    selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
    infos = [info for info in filesystem.get_file_info(selector) if info.is_file]
    return sorted(((filesystem, info.path, info.size, info.mtime_ns or 0) for info in infos), key=lambda item: item[1])


def _sha256(filesystem: Any, path: str) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") if filesystem is None else filesystem.open_input_stream(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _over(parts: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
