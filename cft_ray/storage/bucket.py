"""A bucket as a storage, through `obstore`. Nothing is ever copied or renamed there: a put is whole or absent by itself.

Credentials and address come from the environment (``AWS_…``, ``GOOGLE_APPLICATION_CREDENTIALS``), from the machine's role, or
from the profile in ``~/.aws`` (read by boto3). A large file goes up in parts and comes down in ranges, so that a request that
fails costs a part.
"""

import hashlib
import io
import os
import re
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from cft_ray.storage.entry import Entry, Version
from cft_ray.storage.errors import StorageError
from cft_ray.storage.retry import patiently

PART = 16 * 2**20
"""bytes of a part or range, unless a file would have too many"""
MOST_PARTS = 9_000
"""S3 allows 10,000"""
AT_ONCE = 4
"""parts or ranges under way"""
_RETRY: Any = {
    "max_retries": 6,  # of one request; more patience is in `cft_ray.storage.retry`, which says that it waits
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=4), "base": 2},
}
_CLIENT: Any = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=120)}
_STATUS = re.compile(r"status code: (\d{3}) ?([^:\n]*)")
_CODE, _SAID = re.compile(r"<Code>([^<]*)</Code>"), re.compile(r"<Message>([^<]*)</Message>")
_PASSES = ("ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "RequestTimeout", "SlowDown", "InternalError")
"""S3's codes of what passes by itself, credentials that are being renewed among them, whatever the status."""


T = TypeVar("T")
Refusals = Callable[[], AbstractContextManager[None]]
"""makes what turns the errors of a block into `StorageError`"""


class Bucket:
    """The objects of a bucket, by key."""

    def __init__(self, scheme: str, bucket: str, patience: float | None = None) -> None:
        self.scheme, self.bucket, self.patience = scheme, bucket, patience
        self.where = f"{scheme}://{bucket}"

    @cached_property
    def _store(self) -> Any:
        from obstore import store

        if self.scheme == "gs":
            return store.GCSStore(self.bucket, client_options=_CLIENT, retry_config=_RETRY)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
        options: dict[str, Any] = {"client_options": _CLIENT | {"allow_http": (endpoint or "").startswith("http://")}}
        if provider := _profile():
            options["credential_provider"] = provider
        if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or getattr(provider, "config", None)):
            options["region"] = "us-east-1" if endpoint else _region(self.bucket)
        return store.S3Store(self.bucket, retry_config=_RETRY, **options)

    def transient(self, error: Exception) -> bool:
        """Whether an error may pass by itself: 5xx, time-outs, lost connections, credentials that have just expired."""
        from obstore import exceptions

        if isinstance(error, _Conflict):
            return True
        if not isinstance(error, exceptions.BaseError):
            return isinstance(error, ConnectionError | TimeoutError)
        text = str(error).partition("\n\nDebug source")[0]
        if any(f"<Code>{code}</Code>" in text for code in _PASSES):
            return True
        if status := _STATUS.search(text):
            number = int(status[1])
            return number in (408, 425, 429) or (number >= 500 and number != 501)
        return isinstance(error, exceptions.GenericError) and "redirect" not in text and "HTTP error" in str(error)

    def refused(self, error: Exception) -> str:
        """An error of obstore in words."""
        text = str(error).partition("\n\nDebug source")[0]
        status, code, said = _STATUS.search(text), _CODE.search(text), _SAID.search(text)
        if status or code:
            words = [f"{status[1]} {status[2]}".strip() if status else "", code[1] if code else "", said[1] if said else ""]
            return ", ".join(word for word in words if word)
        if "redirect" in text:
            return "it lies in another region (set AWS_REGION)"
        if "HTTP error" in text:
            return f"no answer ({text.partition('HTTP error: ')[2].strip() or 'connection lost'})"
        return next(iter(text.strip().splitlines()), type(error).__name__)

    def entry(self, path: str) -> Entry | None:
        """What is known of an object; None where there is none."""
        import obstore

        try:
            return _entry(obstore.head(self._store, path), path.rpartition("/")[2])
        except FileNotFoundError:
            return None

    def kind(self, path: str) -> str | None:
        """``file``, ``folder``, or None where there is nothing."""
        if path and self.entry(path) is not None:
            return "file"
        return "folder" if self.list(path, recursive=False) else None

    def read(self, path: str, limit: int | None = None) -> tuple[bytes, Version] | None:
        """Content and state of an object; None where there is none."""
        import obstore

        try:
            found = obstore.get(self._store, path)
            if limit is not None and found.meta["size"] > limit:
                raise ValueError(f"{self.where}/{path} has {found.meta['size']} bytes, more than {limit}")
            return bytes(found.bytes()), Version(found.meta["e_tag"], found.meta["version"])
        except FileNotFoundError as error:
            self._require_bucket(error)
            return None

    def open(self, path: str, refusals: Refusals) -> BinaryIO:
        """An object to be read at any place.

        Args:
            path: its key.
            refusals: puts into words what a read meets.
        """
        import obstore

        meta = obstore.head(self._store, path)
        return io.BufferedReader(_Ranges(self, path, meta["size"], meta["e_tag"], refusals), 2**16)  # pyright: ignore[reportReturnType]

    def write(self, path: str, data: bytes) -> Version:
        """Put an object."""
        import obstore

        put = obstore.put(self._store, path, data, use_multipart=False)
        return Version(put["e_tag"], put["version"])

    def create(self, path: str, data: bytes) -> Version | None:
        """Put an object where there is none; None where there is one that is not this."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            put = obstore.put(self._store, path, data, mode="create")
        except AlreadyExistsError:
            return self._stands(path, data)
        return Version(put["e_tag"], put["version"])

    def replace(self, path: str, data: bytes, version: Version) -> Version | None:
        """Put an object that is still in the state ``version``; None where it is not."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        known = {"e_tag": version.tag, "version": version.generation}
        state: Any = {name: value for name, value in known.items() if value is not None}
        try:
            put = obstore.put(self._store, path, data, mode=state)
        except (PreconditionError, AlreadyExistsError, FileNotFoundError):
            return self._stands(path, data, may_be_gone=True)
        return Version(put["e_tag"], put["version"])

    def _stands(self, path: str, data: bytes, *, may_be_gone: bool = False) -> Version | None:
        """A conditional put was refused. It may have been an earlier try of the same call, whose answer was lost, that stands."""
        found = self.read(path)
        if found is None and not may_be_gone:
            raise _Conflict(f"two puts of {path} met")  # neither has been decided yet, or it has been deleted since
        return found[1] if found is not None and found[0] == data else None

    def list(self, path: str, *, recursive: bool) -> list[Entry]:
        """What lies below a prefix; ``recursive``: all objects below it, and no folders."""
        import obstore

        if recursive:
            metas = [meta for chunk in obstore.list(self._store, path or None, chunk_size=1000) for meta in chunk]
            folders: list[str] = []
        else:
            found = obstore.list_with_delimiter(self._store, path or None)
            metas, folders = list(found["objects"]), list(found["common_prefixes"])
        cut = len(path) + 1 if path else 0
        listed = [_entry(meta, meta["path"][cut:]) for meta in metas]
        listed += [Entry(folder.rstrip("/")[cut:], None) for folder in folders]
        return sorted((entry for entry in listed if entry.name), key=lambda entry: entry.name)

    def delete(self, path: str) -> None:
        """Remove an object, and all below it."""
        import obstore

        def remove(paths: list[str]) -> None:
            try:
                obstore.delete(self._store, paths)
            except FileNotFoundError as error:  # Google's answer for what another has just removed
                self._require_bucket(error)

        below = [f"{path}/{entry.name}" for entry in self._patiently(lambda: self.list(path, recursive=True))]
        if self._patiently(lambda: self.entry(path)) is not None:
            below.append(path)
        for start in range(0, len(below), 1000):
            self._patiently(partial(remove, below[start : start + 1000]))

    def upload(self, source: Path, path: str) -> None:
        """Put a local file, in parts where it is large."""
        import obstore

        part = max(PART, -(-source.stat().st_size // MOST_PARTS))
        obstore.put(self._store, path, source, chunk_size=part, max_concurrency=AT_ONCE)

    def download(self, path: str, sink: BinaryIO) -> str:
        """Copy an object's content; returns its SHA-256. An object that changes meanwhile is an error."""
        import obstore

        meta, digest = self._patiently(lambda: obstore.head(self._store, path)), hashlib.sha256()
        starts = range(0, meta["size"], PART)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = deque(pool.submit(self._range, path, start, start + PART, meta["e_tag"]) for start in starts[:AT_ONCE])
            for ahead in range(AT_ONCE, AT_ONCE + len(starts)):
                chunk = waiting.popleft().result()
                if ahead < len(starts):
                    waiting.append(pool.submit(self._range, path, starts[ahead], starts[ahead] + PART, meta["e_tag"]))
                digest.update(chunk)
                sink.write(chunk)
        return digest.hexdigest()

    def _range(self, path: str, start: int, stop: int, tag: str | None) -> bytes:
        """Bytes ``start`` to ``stop`` of an object in the state ``tag``, patiently."""
        import obstore

        def ask() -> bytes:
            return bytes(obstore.get(self._store, path, options={"range": (start, stop), "if_match": tag}).bytes())

        return self._patiently(ask)

    def _patiently(self, call: Callable[[], T]) -> T:
        """One of several requests: what fails is that one, and not those before it."""
        return patiently(call, self.transient, where=self.where, seconds=self.patience, words=self.refused)

    def _require_bucket(self, error: FileNotFoundError) -> None:
        if "NoSuchBucket" in str(error):
            raise StorageError("there is no such bucket", where=self.where, fix="make it, or check its name") from error


def _entry(meta: Any, name: str) -> Entry:
    return Entry(name, meta["size"], meta["last_modified"], meta["e_tag"])


class _Conflict(Exception):
    """Two conditional puts at once, of which neither stands yet."""


class _Ranges(io.RawIOBase):
    """An object as a file, read by ranges."""

    def __init__(self, bucket: Bucket, path: str, size: int, tag: str | None, refusals: Refusals) -> None:
        super().__init__()
        self._refusals = refusals
        self._bucket, self._path, self._size, self._tag, self._place = bucket, path, size, tag, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        stop = min(self._place + len(buffer), self._size)
        if stop <= self._place:
            return 0
        with self._refusals():
            data = self._bucket._range(self._path, self._place, stop, self._tag)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _profile() -> Any:
    """Credentials of the profile in ``~/.aws``; None where the environment has some, or there is no profile."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return None
    files: Iterable[Path] = (
        Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser(),
        Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser(),
    )
    if not any(file.is_file() for file in files):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if os.environ.get("AWS_PROFILE"):
            raise StorageError(
                "the profile that AWS_PROFILE names is read by boto3, which is not installed",
                where="AWS_PROFILE",
                fix="pip install boto3, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ) from None
        return None
    try:
        return Boto3CredentialProvider(ttl=timedelta(minutes=5))
    except ValueError:  # a profile without credentials: the machine's role has them
        return None


def _region(bucket: str) -> str:
    """The region of an AWS bucket, which it says to anybody."""
    request = urllib.request.Request(f"https://s3.amazonaws.com/{bucket}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:  # forbidden, or moved: it says so all the same
        headers = error.headers
    except OSError:
        return "us-east-1"
    return headers.get("x-amz-bucket-region") or "us-east-1"
