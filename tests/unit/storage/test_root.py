"""The storage root on a local folder."""

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cft_ray.errors import UserError
from cft_ray.storage.errors import StorageError, Unavailable
from cft_ray.storage.root import Storage


def test_write_read_list_delete(tmp_path):
    storage = Storage(tmp_path / "new")
    assert storage.read("a", "b.json") is None and storage.list("a") == []
    storage.write("a", "b.json", data=b"1")
    storage.write("a", "b.json", data=b"22")
    assert storage.read("a", "b.json") == b"22" and storage.size("a", "b.json") == 2
    assert [info.name for info in storage.list("a")] == ["b.json"]  # no temporary file stays
    storage.delete("a")
    storage.delete("a")
    assert storage.read("a", "b.json") is None


def test_a_read_can_be_limited(tmp_path):
    storage = Storage(tmp_path)
    storage.write("big", data=b"x" * 100)
    with pytest.raises(ValueError, match="100 bytes"):
        storage.read("big", limit=99)


def test_relative_folders_become_absolute_and_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs/x y")
    assert storage.uri == str(tmp_path / "runs" / "x y")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(storage)).uri == storage.uri  # noqa: S301 -- our own bytes


@pytest.mark.parametrize(
    "uri",
    [
        *("", " ", "ftp://host/x", "s3://key:secret@bucket/x", "s3://bucket/x?scheme=http"),
        *("s3:/bucket/x", "s3:bucket", "gs:/bucket", "dbfs:/x", "hdfs:/x", "anything:/x", "S3://bucket/x", "~no_such_user/x"),
        *("s3://", "s3:///x", "gs://", "s3://bucket//x", "gs://bucket/x//y"),
        *("s3://bucket/../x", "gs://bucket/a/./b", "s3://bucket/a\nb", "file://machine/x"),
    ],
)
def test_bad_uris_are_refused(uri):
    with pytest.raises(UserError) as caught:
        Storage(uri)
    assert "secret" not in str(caught.value)


def test_unwritable_storage_is_a_user_error(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Storage(blocker / "below").check_writable()
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="cannot be written"):
            Storage(tmp_path / "new").check_writable()


def test_a_writable_storage_is_left_empty(tmp_path):
    Storage(tmp_path).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_colon_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Storage("run:1").uri == str(tmp_path / "run:1")


def test_a_dead_endpoint_is_one_message(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    with pytest.raises(Unavailable, match="cannot be read") as raised:
        Storage("s3://bucket/run", patience=0).list("artifacts")
    assert raised.value.where == "s3://bucket/run" and "\n" not in raised.value.what


class Sick:
    """The real files, but every call raises one of these first."""

    def __init__(self, real, *errors):
        self.real, self.errors = real, list(errors)

    def __getattr__(self, name):
        if name not in ("transient", "refused") and self.errors:
            raise self.errors.pop(0)
        return getattr(self.real, name)


@pytest.mark.parametrize("look", ["list", "read", "size", "kind"])
def test_a_storage_that_is_not_readable_is_one_message(tmp_path, look):
    storage: Any = Storage(tmp_path)
    storage._files = Sick(storage._files, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(StorageError, match="cannot be read: Permission denied"):
        getattr(storage, look)()
    assert not storage._files.errors  # not tried again: it would be denied again


def test_what_passes_is_waited_for(tmp_path):
    storage: Any = Storage(tmp_path)
    storage._files = Sick(storage._files, *(OSError(number, "away") for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)))
    storage.write("a", data=b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_what_does_not_pass_is_unavailable(tmp_path):
    storage: Any = Storage(tmp_path, patience=0.1)
    storage._files = Sick(storage._files, *[OSError(errno.EIO, "away")] * 100)
    with pytest.raises(Unavailable, match="cannot be written to: away"):
        storage.write("a", data=b"1")
    storage._files = storage._files.real
    assert storage.list() == []


def test_the_first_of_two_stays(tmp_path):
    storage: Any = Storage(tmp_path)
    assert storage.put_if_absent("deep", "a", data=b"first") is not None
    assert storage.put_if_absent("deep", "a", data=b"second") is None
    assert storage.read("deep", "a") == b"first" and [entry.name for entry in storage.list("deep")] == ["a"]


def test_a_change_needs_the_state_that_was_read(tmp_path):
    storage: Any = Storage(tmp_path)
    first = storage.put_if_absent("a", data=b"1")
    second = storage.put_if_unchanged("a", data=b"2", version=first)
    assert second is not None and storage.read_version("a") == (b"2", second)
    assert storage.put_if_unchanged("a", data=b"3", version=first) is None and storage.read("a") == b"2"
    storage.delete("a")
    assert storage.put_if_unchanged("a", data=b"3", version=second) is None and storage.read("a") is None


def crowd(call, count=8):
    """What so many threads got that all called at once."""
    together = threading.Barrier(count)

    def one(number):
        together.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("links", [True, False])
def test_of_many_writers_one_succeeds(tmp_path, monkeypatch, links):
    storage: Any = Storage(tmp_path)
    if not links:

        def link(*_):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "link", link)
    made = crowd(lambda number: storage.put_if_absent("a", data=b"%d" % number))
    (winner,) = [number for number, version in enumerate(made) if version is not None]
    assert storage.read("a") == b"%d" % winner
    _, version = storage.read_version("a")
    changed = crowd(lambda number: storage.put_if_unchanged("a", data=b"new %d" % number, version=version))
    (winner,) = [number for number, version in enumerate(changed) if version is not None]
    assert storage.read("a") == b"new %d" % winner


def test_a_counter_of_many_processes_counts_each(tmp_path):
    """Compare and set: read, add one, write if nobody was faster, else again."""
    code = f"""
from cft_ray.storage.root import Storage
storage = Storage({str(tmp_path)!r})
for _ in range(20):
    while True:
        found = storage.read_version("count")
        if found is None:
            if storage.put_if_absent("count", data=b"1"): break
        elif storage.put_if_unchanged("count", data=b"%d" % (int(found[0]) + 1), version=found[1]): break
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert Storage(tmp_path).read("count") == b"80"


def test_listing_goes_down_when_asked(tmp_path):
    storage: Any = Storage(tmp_path)
    for name in ("b/deep/file", "b/x", "a"):
        storage.write(*name.split("/"), data=name.encode())
    assert [(entry.name, entry.size) for entry in storage.list()] == [("a", 1), ("b", None)]
    assert [entry.name for entry in storage.list("b", recursive=True)] == ["deep/file", "x"]
    assert [entry.name for entry in storage.list("b")] == ["deep", "x"] and storage.list("none") == []
    assert [storage.kind(*name) for name in ((), ("a",), ("b",), ("c",), ("a", "x"))] == ["folder", "file", "folder", None, None]


def test_copies_are_whole_and_known_by_their_digest(tmp_path):
    data = os.urandom(5 * 2**20 + 1)
    (tmp_path / "source").write_bytes(data)
    storage: Any = Storage(tmp_path / "storage")
    storage.upload(tmp_path / "source", "deep", "copy")
    digest = hashlib.sha256(data).hexdigest()
    assert storage.digest("deep", "copy") == digest == storage.download(tmp_path / "back" / "file", "deep", "copy")
    assert (tmp_path / "back" / "file").read_bytes() == data
    with storage.open("deep", "copy") as opened:
        opened.seek(-3, os.SEEK_END)
        assert opened.read() == data[-3:]
    with pytest.raises(FileNotFoundError):
        storage.download(tmp_path / "nothing", "absent")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "absent", "x")
