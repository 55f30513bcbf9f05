"""One storage root: a folder, ``s3://bucket/prefix`` or ``gs://bucket/prefix``, through `pyarrow.fs`.

Everything above this module names things by parts below the root (``"artifacts", kind, fingerprint``) and never sees
which file system it is on. A write is whole or absent: locally a temporary sibling is flushed and renamed, an object
store's single put has that property by itself.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from pyarrow import ArrowException, fs

from cft_ray.errors import UserError

SCHEMES = ("file", "s3", "gs", "gcs")
WANTED = "use a folder, s3://BUCKET/… or gs://BUCKET/…"
CHUNK = 4 * 2**20
GCS_PATIENCE = 8
"""seconds that Google's client tries again; its own default is 15 minutes"""
_OTHER = [
    "dbfs",
    "hdfs",
    "viewfs",
    "abfs",
    "abfss",
    "az",
    "azure",
    "wasb",
    "wasbs",
    "adl",
    "oss",
    "http",
    "https",
    "hf",
    "s3a",
    "s3n",
]
"""Schemes of places that are no storage here; with a colon alone they are refused too, as folders are never called so."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)


class Storage:
    """A storage root.

    Args:
        uri: a folder (relative ones are taken from the working directory), ``file://``, ``s3://`` or ``gs://``.

    Raises:
        UserError: a scheme that is not known, or a URI that cannot be understood.
    """

    def __init__(self, uri: str | Path) -> None:
        text = _checked(str(uri))
        try:
            if "://" not in text:
                text = Path(text).expanduser().absolute().as_uri()
            options = f"?retry_limit_seconds={GCS_PATIENCE}" if text.startswith(("gs://", "gcs://")) else ""
            self.filesystem, root = fs.FileSystem.from_uri(text + options)
        except (ArrowException, OSError, ValueError, RuntimeError) as error:  # the last: `~user` where there is no such user
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
        with self.reading():
            info = self.filesystem.get_file_info(self.path(*parts))
        return info.size if info.type == fs.FileType.File else None

    def read(self, *parts: str, limit: int | None = None) -> bytes | None:
        """A file's content; None where there is none.

        Raises:
            UserError: the storage cannot be read.
            ValueError: the file is larger than ``limit`` bytes.
        """
        try:
            with self.reading(), self.filesystem.open_input_file(self.path(*parts)) as source:
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
        with self.reading():
            return self.filesystem.get_file_info(selector)

    def kind(self) -> fs.FileType:
        """What there is at the root.

        Raises:
            UserError: the storage cannot be read.
        """
        with self.reading():
            return self.filesystem.get_file_info(self.root).type

    def delete(self, *parts: str) -> None:
        """Remove a file or a folder with everything in it; nothing happens where there is none."""
        path = self.path(*parts)
        with self.reading():
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
        with target.open("wb") as sink, self.reading(), self.filesystem.open_input_stream(self.path(*parts)) as source:
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
    def reading(self) -> Iterator[None]:
        """Turn what the file system refuses into a UserError that names the storage; a file that is not there stays one."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, ArrowException) as error:
            fix = "check the storage's address, the network and what this user may read"
            raise UserError(f"the storage cannot be read: {_reason(error)}", where=self.uri, fix=fix) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the file system refuses into a UserError that names the storage."""
        try:
            yield
        except (OSError, ArrowException) as error:
            fix = "give a storage.uri that this user may write to, with free space"
            raise UserError(f"the storage cannot be written to: {_reason(error)}", where=self.uri, fix=fix) from error


def _checked(text: str) -> str:
    """A storage's URI, if it is one.

    Raises:
        UserError: it is empty, of an unknown scheme, without a bucket, or carries credentials or options.
    """
    if not text.strip():
        raise UserError("the storage is empty", where="storage.uri", fix=WANTED)
    scheme, separator, rest = text.partition("://")
    if not separator:
        found = _SCHEME.fullmatch(text)
        if found and (found[2].startswith("/") or found[1].lower() in (*SCHEMES, *_OTHER)):
            known = found[1].lower() in SCHEMES
            fix = f"{found[1].lower()}://{found[2].lstrip('/')}" if known and found[1] != "file" else WANTED
            raise UserError(f"`{found[1]}:` begins neither a folder nor a URI", where=text, fix=fix)
        return text
    if scheme not in SCHEMES:
        raise UserError(f"unknown storage scheme {scheme!r}", where=text, fix=WANTED)
    bucket, _, path = rest.partition("/")
    if "@" in bucket:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"
        raise UserError("the storage URI carries credentials, which would end up in records and logs", where=scheme, fix=fix)
    if "?" in text:
        raise UserError("options in a storage URI are not supported", where=text, fix="set AWS_ENDPOINT_URL, AWS_REGION …")
    if scheme != "file":
        if not bucket:
            raise UserError("the storage names no bucket", where=text, fix=WANTED)
        if "//" in f"/{path}":
            raise UserError("the storage's path has an empty part (`//`)", where=text, fix="write each `/` once")
    return text


def _reason(error: Exception) -> str:
    """The first line of what went wrong, without the end that the cloud's client puts there."""
    text = getattr(error, "strerror", None) or str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__).partition("; Details:")[0]


def write_local(path: Path, data: bytes) -> None:
    """Write a whole local file: temporary sibling, flush to disk, rename, flush the folder.

    A file that is there gives its mode and, where this user may, its owner; a new one gets what the umask says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.stat() if path.is_file() else None
    temporary = path.parent / f".{path.name[:200]}-{os.urandom(6).hex()}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as sink:
            sink.write(data)
            sink.flush()
            if there is not None:
                with contextlib.suppress(PermissionError):
                    os.chown(temporary, there.st_uid, there.st_gid)
                temporary.chmod(stat.S_IMODE(there.st_mode))
            os.fsync(sink.fileno())
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
    """Remove a local folder with everything in it; nothing happens where there is none."""
    if folder.exists():
        shutil.rmtree(folder)
