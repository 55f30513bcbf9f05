"""One storage root: a folder, ``s3://bucket/prefix`` or ``gs://bucket/prefix``, through `pyarrow.fs`.

Everything above this module names things by parts below the root (``"artifacts", kind, fingerprint``) and never sees
which file system it is on. A write is whole or absent: locally a temporary sibling is flushed and renamed, an object
store's single put has that property by itself.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pyarrow import ArrowException, fs

from cft_ray.errors import UserError

SCHEMES = ("file", "s3", "gs", "gcs")
CHUNK = 4 * 2**20


class Storage:
    """A storage root.

    Args:
        uri: a folder (relative ones are taken from the working directory), ``file://``, ``s3://`` or ``gs://``.

    Raises:
        UserError: a scheme that is not known, or a URI that cannot be understood.
    """

    def __init__(self, uri: str | Path) -> None:
        text = str(uri)
        scheme, separator, _ = text.partition("://")
        if separator and scheme not in SCHEMES:
            raise UserError(f"unknown storage scheme {scheme!r}", where=text, fix="use a folder, s3://… or gs://…")
        if not text:
            raise UserError("the storage is empty", where="storage.uri", fix="use a folder, s3://… or gs://…")
        if separator and "@" in text.removeprefix(f"{scheme}://").partition("/")[0]:
            fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"
            raise UserError("the storage URI carries credentials, which would end up in records and logs", where=scheme, fix=fix)
        if separator and "?" in text:
            raise UserError("options in a storage URI are not supported", where=text, fix="set AWS_ENDPOINT_URL, AWS_REGION …")
        if not separator:
            text = Path(text).expanduser().absolute().as_uri()
        try:
            self.filesystem, root = fs.FileSystem.from_uri(text)
        except (ArrowException, OSError, ValueError) as error:
            raise UserError(f"the storage cannot be opened: {error}", where=str(uri), fix="check the URI and access") from error
        self.root = root.rstrip("/") or "/"
        self.local = isinstance(self.filesystem, fs.LocalFileSystem)
        self.uri = self.root if self.local else text.rstrip("/")
        """absolute: the same place for every process"""

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.uri,)

    def path(self, *parts: str) -> str:
        """Path for `filesystem`, below the root."""
        return "/".join((self.root, *parts))

    def folder(self, *parts: str) -> Path:
        """The same as a local path; only where `local`."""
        assert self.local, self.uri
        return Path(self.path(*parts))

    def size(self, *parts: str) -> int | None:
        """Bytes of a file; None where there is none."""
        info = self.filesystem.get_file_info(self.path(*parts))
        return info.size if info.type == fs.FileType.File else None

    def read(self, *parts: str, limit: int | None = None) -> bytes | None:
        """A file's content; None where there is none.

        Raises:
            ValueError: the file is larger than ``limit`` bytes.
        """
        try:
            with self.filesystem.open_input_file(self.path(*parts)) as source:
                if limit is not None and source.size() > limit:
                    raise ValueError(f"{self.path(*parts)} has {source.size()} bytes, more than {limit}")
                return source.read()
        except FileNotFoundError:
            return None

    def write(self, *parts: str, data: bytes) -> None:
        """Write a whole file, durable and atomic.

        Raises:
            UserError: the storage cannot be written to.
        """
        with self.writing():
            if self.local:
                write_local(self.folder(*parts), data)
            else:
                with self.filesystem.open_output_stream(self.path(*parts)) as sink:
                    sink.write(data)

    def list(self, *parts: str, recursive: bool = False) -> list[fs.FileInfo]:
        """What lies in a folder, empty where there is none; `relative` gives the parts of an entry."""
        selector = fs.FileSelector(self.path(*parts), recursive=recursive, allow_not_found=True)
        return self.filesystem.get_file_info(selector)

    def delete(self, *parts: str) -> None:
        """Remove a file or a folder with everything in it; nothing happens where there is none."""
        path = self.path(*parts)
        kind = self.filesystem.get_file_info(path).type
        with self.writing(), contextlib.suppress(FileNotFoundError):
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(path)

    def upload(self, source: Path, *parts: str) -> None:
        """Copy a local file to the storage (object stores: one put, visible only when whole)."""
        with self.writing(), source.open("rb") as opened, self.filesystem.open_output_stream(self.path(*parts)) as sink:
            while chunk := opened.read(CHUNK):
                sink.write(chunk)

    def download(self, target: Path, *parts: str) -> str:
        """Copy a file of the storage to a local path; returns the SHA-256 of what came."""
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.filesystem.open_input_stream(self.path(*parts)) as source, target.open("wb") as sink:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                sink.write(chunk)
        return digest.hexdigest()

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            UserError: the storage cannot be written to.
        """
        name = f".write-test-{os.urandom(4).hex()}"
        self.write(name, data=b"cft-ray")
        self.delete(name)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the file system refuses into a UserError that names the storage."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"the storage cannot be written to: {reason}",
                where=self.uri,
                fix="give a storage.uri that this user may write to, with free space",
            ) from error


def write_local(path: Path, data: bytes) -> None:
    """Write a whole local file: temporary sibling, flush to disk, rename, flush the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def machine_folder(*parts: str) -> Path:
    """A folder of this machine for what can be made again: downloads, scratch. ``CFT_RAY_CACHE`` moves it."""
    root = os.environ.get("CFT_RAY_CACHE") or Path.home() / ".cache" / "cft-ray"
    return Path(root, *parts)


def remove_local(folder: Path) -> None:
    """Remove a local folder with everything in it; nothing happens where there is none."""
    if folder.exists():
        shutil.rmtree(folder)
