"""A folder as a storage. A file is whole or absent: a temporary sibling is flushed to the disk, then renamed or linked to its
name, then the folder is flushed. Conditional writes: a link to a name fails where there is one; a change is made under a lock.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cft_ray.errors import UserError
from cft_ray.storage.entry import Entry, Version
from cft_ray.storage.retry import reason

CHUNK = 4 * 2**20
TRANSIENT = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOTCONN),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.EREMOTEIO),
}
"""What a network file system answers while its server is away."""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class Folder:
    """The files below a folder, by absolute path. What goes wrong is an OSError."""

    def __init__(self, where: str) -> None:
        self.where = where

    def transient(self, error: Exception) -> bool:
        """Whether an error may pass by itself."""
        return isinstance(error, OSError) and error.errno in TRANSIENT

    def refused(self, error: Exception) -> str:
        """An error in words."""
        return reason(error)

    def entry(self, path: str) -> Entry | None:
        """What is known of a file; None where there is none."""
        try:
            found = os.stat(path)  # noqa: PTH116 - paths are text here, as in a bucket
        except (FileNotFoundError, NotADirectoryError):
            return None
        name, changed = path.rpartition("/")[2], datetime.fromtimestamp(found.st_mtime, UTC)
        return Entry(name, found.st_size, changed) if stat.S_ISREG(found.st_mode) else None

    def kind(self, path: str) -> str | None:
        """``file``, ``folder``, or None where there is nothing."""
        try:
            found = os.stat(path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None
        return "folder" if stat.S_ISDIR(found.st_mode) else "file"

    def read(self, path: str, limit: int | None = None) -> tuple[bytes, Version] | None:
        """Content and state of a file; None where there is none."""
        try:
            with open(path, "rb") as opened:  # noqa: PTH123
                if limit is not None and (size := os.fstat(opened.fileno()).st_size) > limit:
                    raise ValueError(f"{path} has {size} bytes, more than {limit}")
                data = opened.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data, _version(data)

    def open(self, path: str, refusals: object = None) -> BinaryIO:
        """A file to be read at any place."""
        return open(path, "rb")  # noqa: PTH123 - closed by who asked

    def write(self, path: str, data: bytes) -> Version:
        """Write a whole file."""
        write_local(Path(path), data)
        return _version(data)

    def create(self, path: str, data: bytes) -> Version | None:
        """Write a whole file where there is none; None where there is one."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        try:
            _written(temporary, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with locked(target.parent):
                    if target.exists():
                        return None
                    temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync(target.parent)
        return _version(data)

    def replace(self, path: str, data: bytes, version: Version) -> Version | None:
        """Write a file that is still in the state ``version``; None where it is not."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent):
            found = self.read(path)
            if found is None or found[1] != version:
                return None
            return self.write(path, data)

    def list(self, path: str, *, recursive: bool) -> list[Entry]:
        """What lies in a folder; ``recursive``: all files below it, and no folders."""
        try:
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        listed: list[Entry] = []
        for entry in found:
            try:
                folder, status = entry.is_dir(), entry.stat()
            except FileNotFoundError:  # removed since the look
                continue
            if folder and recursive:
                listed += [
                    Entry(f"{entry.name}/{below.name}", below.size, below.changed)
                    for below in self.list(f"{path}/{entry.name}", recursive=True)
                ]
            else:
                changed = datetime.fromtimestamp(status.st_mtime, UTC)
                listed.append(Entry(entry.name, None if folder else status.st_size, changed))
        return listed

    def delete(self, path: str) -> None:
        """Remove a file or a folder with everything in it."""
        target = Path(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink()

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file here."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        try:
            with source.open("rb") as opened, temporary.open("xb") as sink:
                shutil.copyfileobj(opened, sink, CHUNK)
                sink.flush()
                os.fsync(sink.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync(target.parent)

    def download(self, path: str, sink: BinaryIO) -> str:
        """Copy a file's content; returns its SHA-256."""
        digest = hashlib.sha256()
        with open(path, "rb") as source:  # noqa: PTH123
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                sink.write(chunk)
        return digest.hexdigest()


def _version(data: bytes) -> Version:
    return Version(hashlib.sha256(data).hexdigest())


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name[:200]}-{os.urandom(6).hex()}"


def _written(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as sink:
        sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone among the processes that see this folder.

    Raises:
        UserError: its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"the file system of the storage has no file locks ({error.strerror})",
                where=str(folder),
                fix="mount it with locks (Lustre: -o flock), or give a storage.uri on another one, or an object store",
            ) from error
        yield  # closing gives the lock back


def write_local(path: Path, data: bytes) -> None:
    """Write a whole local file: temporary sibling, flush to disk, rename, flush the folder.

    A file that is there gives its mode and, where this user may, its owner; a new one gets what the umask says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.stat() if path.is_file() else None
    temporary = _temporary(path)
    try:
        _written(temporary, data)
        if there is not None:
            with contextlib.suppress(PermissionError):
                os.chown(temporary, there.st_uid, there.st_gid)
            temporary.chmod(stat.S_IMODE(there.st_mode))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_local(folder: Path) -> None:
    """Remove a local folder with everything in it; nothing happens where there is none, or another process removes it too."""

    def failed(function: object, path: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    if folder.exists():
        shutil.rmtree(folder, onerror=lambda function, path, info: failed(function, path, info[1]))
