"""Local files and models are known by their content: SHA-256 over names and contents, however the path reads.

Hashing gigabytes for every plan would be slow, so a file's digest is kept in the user's cache folder under its path, size
and time of change. The cache may be deleted at any time.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from cft_ray.data.cache import FileCache
from cft_ray.data.languages import filled, names_language
from cft_ray.data.paths import matching
from cft_ray.errors import UserError
from cft_ray.storage import files as stored
from cft_ray.storage.files import Found
from cft_ray.storage.location import is_uri, local_path


class Digests:
    """Digests of files, with the cache read once and written by `save`.

    Args:
        cache: the cache's file; none: ``digests.json`` in `machine_folder`.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._known = FileCache("digests.json", cache)

    def files(self, pattern: str, languages: Sequence[str], *, where: str) -> str:
        """Digest of the files that a data set's pattern names.

        Args:
            pattern: path or URI; ``{language}`` or ``{flores}`` stands for each language in turn, ``*`` for any
                characters (`cft_ray.data.paths`).
            languages: for ``{language}``.
            where: place in the grid, for messages.

        Raises:
            UserError: a language, or the pattern, finds no file; a file cannot be read.
        """
        parts: list[tuple[str, str]] = []
        for language in languages if names_language(pattern) else [""]:
            with _reading(pattern, where):
                location = filled(pattern, language)
                found = matching(location)
                there = local_path(location) if not found and not is_uri(location) else None
            if not found:
                what = f"there is no file {location}"
                if there is not None and there.exists():
                    what = f"{location} is a folder" if there.is_dir() else f"{location} is no regular file"
                raise UserError(what, where=where, fix="a path or URI of files that exist; `*` stands for any characters")
            parts += [(f"{language}/{PurePosixPath(file.path).name}", self._file(file, where)) for file in found]
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
        names = {PurePosixPath(file.path).name for file in files}
        if mark not in names:
            what = f"holds no {mark}" if files else "does not exist, or is empty"
            raise UserError(f"the model's folder {path} {what}", where=where, fix="a folder written by save_pretrained")
        start = os.path.commonpath([str(PurePosixPath(file.path).parent) for file in files])
        return _over((os.path.relpath(file.path, start), self._file(file, where)) for file in files)

    def save(self) -> None:
        """Write the cache, if it grew."""
        self._known.save()

    def _file(self, file: Found, where: str) -> str:
        key = f"{file.location}|{file.size}|{file.changed}" if file.changed else ""
        if key and (known := self._known.get(key)) is not None:
            return known
        with _reading(file.path, where):
            digest = stored.digest(file.location)
        if key:
            self._known.put(key, digest)
        return digest


@contextlib.contextmanager
def _reading(path: str, where: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:  # a URI that cannot be understood, a storage that cannot be read
        raise UserError(f"{error.where}: {error.what}" if error.where else error.what, where=where, fix=error.fix) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}", where=where, fix="a readable file, or access to it") from None


def _below(folder: str) -> list[Found]:
    """Every file below a folder."""
    if not is_uri(folder):
        files = sorted(item for item in local_path(folder).rglob("*") if item.is_file())
        return [Found(str(item), str(item), item.stat().st_size, item.stat().st_mtime_ns) for item in files]
    return stored.files_below(folder)


def _over(parts: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
