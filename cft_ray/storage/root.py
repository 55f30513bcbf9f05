"""One storage root: a folder, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.

Everything above this module names things by parts below the root (``"artifacts", kind, fingerprint``) and never sees
which file system it is on. A write is whole or absent, and the two conditional writes are decided by the storage itself, so
that of two writers exactly one succeeds. What is transient is tried again (`cft_ray.storage.retry`); what is not, or is so for
too long, is a `StorageError`.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from cft_ray.storage.bucket import Bucket
from cft_ray.storage.entry import Entry, Version
from cft_ray.storage.errors import StorageError, Unavailable
from cft_ray.storage.local import Folder, sync
from cft_ray.storage.location import understood
from cft_ray.storage.retry import FIRST_LOOK, patiently, reason

READ, WRITTEN = "cannot be read", "cannot be written to"
FIXES = {
    READ: "check the storage's address, the network and what this user may read",
    WRITTEN: "give a storage.uri that this user may write to, with free space",
}
COPIES = 4
"""files that are copied at a time"""
T = TypeVar("T")


class Storage:
    """A storage root. Picklable; cheap to make, connects when first used.

    Args:
        uri: a folder (relative ones are taken from the working directory), ``file://``, ``s3://`` or ``gs://``.
        patience: seconds for which a storage that does not answer is asked again; None: as `retry.patience`.

    Raises:
        UserError: a scheme that is not known, or a URI that cannot be understood.
    """

    def __init__(self, uri: str | Path, patience: float | None = None) -> None:
        scheme, bucket, path = understood(str(uri))
        self.local = scheme == "file"
        self.root = path
        """path of the folder, or prefix inside the bucket (which may be empty)"""
        self.uri = path if self.local else "/".join(filter(None, (f"{scheme}:/", bucket, path)))
        """absolute: the same place for every process"""
        self.patience = patience
        self._files = Folder(self.uri) if self.local else Bucket(scheme, bucket, patience)

    def __reduce__(self) -> tuple[type["Storage"], tuple[str, float | None]]:
        return Storage, (self.uri, self.patience)

    def path(self, *parts: str) -> str:
        """Path inside the file system or bucket."""
        if self.local:
            return "/".join((self.root.rstrip("/"), *parts)) or "/"
        return "/".join(filter(None, (self.root, *parts)))

    def location(self, *parts: str) -> str:
        """Path or URI, for messages and for whoever opens it by itself."""
        return "/".join((self.uri.rstrip("/"), *parts)) or "/"

    def folder(self, *parts: str) -> Path:
        """The same as a local path; only where `local`."""
        assert self.local, self.uri
        return Path(self.path(*parts))

    def size(self, *parts: str) -> int | None:
        """Bytes of a file; None where there is none."""
        found = self.entry(*parts)
        return None if found is None else found.size

    def entry(self, *parts: str) -> Entry | None:
        """What a listing says of one file; None where there is none.

        Raises:
            StorageError: the storage cannot be read.
        """
        return self._ask(READ, lambda: self._files.entry(self.path(*parts)))

    def kind(self, *parts: str) -> str | None:
        """``file``, ``folder``, or None where there is nothing.

        Raises:
            StorageError: the storage cannot be read.
        """
        return self._ask(READ, lambda: self._files.kind(self.path(*parts)))

    def read(self, *parts: str, limit: int | None = None) -> bytes | None:
        """A file's content; None where there is none.

        Raises:
            StorageError: the storage cannot be read.
            ValueError: the file is larger than ``limit`` bytes.
        """
        found = self.read_version(*parts, limit=limit)
        return None if found is None else found[0]

    def read_version(self, *parts: str, limit: int | None = None) -> tuple[bytes, Version] | None:
        """A file's content with what `put_if_unchanged` wants to know of it; None where there is none."""
        return self._ask(READ, lambda: self._files.read(self.path(*parts), limit))

    def open(self, *parts: str) -> BinaryIO:
        """A file to be read at any place, without fetching all of it.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the storage cannot be read; also whenever an object store's file is read.
        """
        return self._ask(READ, lambda: self._files.open(self.path(*parts), lambda: self._refusals(READ)))

    def write(self, *parts: str, data: bytes) -> None:
        """Write a whole file, durable and atomic.

        Raises:
            StorageError: the storage cannot be written to.
        """
        self._ask(WRITTEN, lambda: self._files.write(self.path(*parts), data))

    def put_if_absent(self, *parts: str, data: bytes) -> Version | None:
        """Write a file where there is none. Of several writers one succeeds.

        ``data`` should be like no other writer's: if an answer is lost on the way, a file with this content is taken for ours.

        Returns:
            the file's state; None: there is another file, which stays.

        Raises:
            StorageError: the storage cannot be written to.
        """
        return self._ask(WRITTEN, lambda: self._files.create(self.path(*parts), data))

    def put_if_unchanged(self, *parts: str, data: bytes, version: Version) -> Version | None:
        """Write a file over one that is still in the given state. Of several writers one succeeds; ``data`` as above.

        Returns:
            the file's new state; None: it is in another state, or gone, and stays so.

        Raises:
            StorageError: the storage cannot be written to.
        """
        return self._ask(WRITTEN, lambda: self._files.replace(self.path(*parts), data, version))

    def list(self, *parts: str, recursive: bool = False) -> list[Entry]:
        """What lies in a folder, sorted by name; empty where there is none.

        Args:
            parts: of the folder's path.
            recursive: all files below it, and no folders.
        """
        return self._ask(READ, lambda: self._files.list(self.path(*parts), recursive=recursive))

    def delete(self, *parts: str) -> None:
        """Remove a file or a folder with everything in it; nothing happens where there is none."""
        self._ask(WRITTEN, lambda: self._files.delete(self.path(*parts)))

    def upload(self, source: Path, *parts: str) -> None:
        """Copy a local file to the storage; it is there once it is whole.

        Raises:
            FileNotFoundError: there is no such local file.
        """
        if not source.is_file():
            raise FileNotFoundError(source)
        self._ask(WRITTEN, lambda: self._files.upload(source, self.path(*parts)))

    def download(self, target: Path, *parts: str) -> str:
        """Copy a file of the storage to a local path; returns the SHA-256 of what came.

        Raises:
            FileNotFoundError: there is no such file in the storage.
            StorageError: the storage cannot be read.
        """
        target.parent.mkdir(parents=True, exist_ok=True)

        def copy() -> str:
            with target.open("wb") as sink:
                return self._files.download(self.path(*parts), sink)

        return self._ask(READ, copy)

    def fill(self, source: Path) -> None:
        """Copy all files below a local folder to the root, several at a time."""
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        with ThreadPoolExecutor(COPIES) as pool:
            for sent in [pool.submit(self.upload, path, *path.relative_to(source).parts) for path in paths]:
                sent.result()

    def mirror(self, target: Path, *parts: str) -> None:
        """Copy all files below a folder of the storage to a local one, several at a time."""
        names = [entry.name for entry in self.list(*parts, recursive=True)]
        with ThreadPoolExecutor(COPIES) as pool:
            for arrived in [pool.submit(self.download, target / name, *parts, name) for name in names]:
                arrived.result()

    def digest(self, *parts: str) -> str:
        """SHA-256 of a file's content, which is read and not kept.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: the storage cannot be read.
        """

        def read() -> str:
            with open(os.devnull, "wb") as sink:  # noqa: PTH123
                return self._files.download(self.path(*parts), sink)

        return self._ask(READ, read)

    def check_writable(self) -> None:
        """Write and remove a small file, and see that a second one does not replace it.

        Raises:
            StorageError: the storage cannot be written to, or does not decide conditional writes.
        """
        name = f".write-test-{os.urandom(4).hex()}"
        first = Storage(self.uri, FIRST_LOOK)
        try:
            decides = first.put_if_absent(name, data=b"first") and not first.put_if_absent(name, data=b"second")
        finally:
            first.delete(name)
        if not decides:
            raise StorageError(
                "the storage ignores conditional writes (If-None-Match), without which two runs would overwrite each other",
                where=self.uri,
                fix="take a folder, S3, Google's, or a server that has them (MinIO and Ceph do in newer versions)",
            )

    def sync(self, *parts: str) -> None:
        """Make a local folder's entries durable; an object store needs none of it."""
        if self.local:
            with self.writing():
                sync(self.folder(*parts))

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        with self._refusals(what):
            return patiently(call, self._files.transient, where=self.uri, seconds=self.patience, words=self._files.refused)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what a local file system refuses into a StorageError that names the storage."""
        with self._refusals(WRITTEN):
            yield

    @contextlib.contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if what == READ:
                raise
            missing = "there is no such bucket" if not self.local else reason(error)
            raise StorageError(f"the storage {what}: {missing}", where=self.uri, fix=FIXES[what]) from error
        except (StorageError, ValueError):
            raise
        except Exception as error:
            if not (isinstance(error, OSError) or (not self.local and _from_bucket(error))):
                raise
            passes = self._files.transient(error)
            fix = "check the network and the storage; the same command continues" if passes else FIXES[what]
            sort = Unavailable if passes else StorageError
            raise sort(f"the storage {what}: {self._files.refused(error)}", where=self.uri, fix=fix) from error


def _from_bucket(error: Exception) -> bool:
    return type(error).__module__.startswith(("obstore", "cft_ray.storage"))
