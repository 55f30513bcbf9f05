"""A bucket as a storage: an S3 that answers badly, slowly, or not at all."""

import hashlib
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from s3double import Cut, Delay, Refuse

from cft_ray.storage import bucket as bucket_module
from cft_ray.storage import retry
from cft_ray.storage.errors import StorageError, Unavailable
from cft_ray.storage.root import Storage

PATIENCE = 40.0
"""seconds that a storage is waited for"""


@pytest.fixture
def storage(s3, monkeypatch) -> Storage:
    monkeypatch.setitem(bucket_module._RETRY, "max_retries", 0)  # so that what is tried again is tried by us
    return Storage(f"s3://{s3.bucket()}/some/prefix", patience=PATIENCE)


def test_files_come_and_go(storage):
    storage.check_writable()
    assert storage.read("a", "b") is None and storage.list() == [] and storage.kind() is None
    for name in ("a/b", "a/deep/c", "n@r%2Fü x.json"):
        storage.write(*name.split("/"), data=name.encode())
    assert storage.read("n@r%2Fü x.json") == "n@r%2Fü x.json".encode()
    assert [(entry.name, entry.size) for entry in storage.list()] == [("a", None), ("n@r%2Fü x.json", 15)]
    assert [entry.name for entry in storage.list("a", recursive=True)] == ["b", "deep/c"]
    assert [storage.kind(*name) for name in ((), ("a",), ("a", "b"), ("x",))] == ["folder", "folder", "file", None]
    with pytest.raises(ValueError, match="3 bytes, more than 2"):
        storage.read("a", "b", limit=2)
    storage.delete("a")
    storage.delete("a")
    assert [entry.name for entry in storage.list(recursive=True)] == ["n@r%2Fü x.json"]


def test_the_whole_bucket_may_be_the_storage(storage):
    root = Storage(storage.uri.rpartition("/some")[0])
    root.write("a", "b", data=b"1")
    assert root.list()[0].name == "a" and root.read("a", "b") == b"1" and root.kind() == "folder"


def test_large_files_go_in_parts_and_come_in_ranges(storage, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket_module, "PART", 5 * 2**20)
    data = os.urandom(12 * 2**20 + 5)
    (tmp_path / "file").write_bytes(data)
    storage.upload(tmp_path / "file", "large")
    assert sum("partNumber" in asked.path for asked in s3.asked) == 3
    assert storage.download(tmp_path / "back", "large") == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "back").read_bytes() == data and storage.digest("large") == hashlib.sha256(data).hexdigest()
    with storage.open("large") as opened:
        opened.seek(7 * 2**20)
        assert opened.read(10) == data[7 * 2**20 :][:10]
    (tmp_path / "none").write_bytes(b"")
    storage.upload(tmp_path / "none", "none")
    assert storage.download(tmp_path / "back", "none") == hashlib.sha256(b"").hexdigest()


def test_nothing_is_copied_there(storage, s3, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    storage.upload(tmp_path / "file", "a")
    storage.write("a", data=b"y")
    storage.put_if_absent("b", data=b"z")
    storage.delete("a")
    assert s3.asked and not any(asked.copy for asked in s3.asked)


def test_of_many_writers_one_succeeds(storage):
    together = threading.Barrier(8)

    def put(number: int) -> bool:
        together.wait()
        return storage.put_if_absent("a", data=b"%d" % number) is not None

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(8)))
    assert sum(won) == 1 and storage.read("a") == b"%d" % won.index(True)
    first = storage.read_version("a")
    assert first is not None
    assert storage.put_if_unchanged("a", data=b"new", version=first[1]) is not None
    assert storage.put_if_unchanged("a", data=b"newer", version=first[1]) is None and storage.read("a") == b"new"
    storage.delete("a")
    assert storage.put_if_unchanged("a", data=b"newer", version=first[1]) is None and storage.read("a") is None


def puts(action):
    """The first put is answered so; all else is as usual."""
    left = [action]
    return lambda asked: left.pop() if left and asked.method == "PUT" else None


def test_an_answer_that_is_lost_does_not_make_a_loser(storage, s3):
    """The put was done, and its answer never came: the second try meets its own file."""
    with s3.behaving(puts(Cut(after=True))):
        assert storage.put_if_absent("a", data=b"mine") is not None
    found = storage.read_version("a")
    assert found is not None and found[0] == b"mine"
    with s3.behaving(puts(Cut(after=True))):
        changed = storage.put_if_unchanged("a", data=b"still mine", version=found[1])
    assert changed is not None and storage.read_version("a") == (b"still mine", changed)


@pytest.mark.parametrize("action", [Refuse(503), Refuse(500, b""), Refuse(429, b""), Cut(), Cut(after=True)])
def test_what_passes_is_waited_for(storage, s3, tmp_path, action):
    (tmp_path / "file").write_bytes(b"content")
    turn = itertools.count()
    with s3.behaving(lambda _: action if next(turn) % 2 == 0 else None):  # every other request
        storage.write("a", data=b"1")
        assert storage.read("a") == b"1" and [entry.name for entry in storage.list()] == ["a"]
        storage.upload(tmp_path / "file", "b")
        assert storage.download(tmp_path / "back", "b") == hashlib.sha256(b"content").hexdigest()
        storage.delete("a")
        assert storage.size("a") is None


def test_credentials_that_have_expired_may_be_renewed(storage, s3):
    body = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
    with s3.behaving(puts(Refuse(403, body))):
        storage.write("a", data=b"1")
    assert storage.read("a") == b"1"


def test_what_does_not_pass_is_said_at_once(storage, s3):
    denied = Refuse(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
    begun = time.monotonic()
    with s3.behaving(lambda _: denied), pytest.raises(StorageError, match="AccessDenied") as raised:
        storage.write("a", data=b"1")
    assert not isinstance(raised.value, Unavailable) and "\n" not in raised.value.what
    with pytest.raises(StorageError, match=r"(?i)no ?such ?bucket"):
        Storage("s3://no-such-bucket-here/x").check_writable()
    with pytest.raises(StorageError, match=r"(?i)no ?such ?bucket"):
        Storage("s3://no-such-bucket-here/x").read("runs", "x.json")
    assert time.monotonic() - begun < PATIENCE / 4, "it is not tried again"


def test_an_outage_that_lasts_is_unavailable_and_told(storage, s3, monkeypatch):
    monkeypatch.setattr(retry, "QUIET", 0.2)
    short, said = Storage(storage.uri, patience=1), []
    with s3.behaving(lambda _: Refuse(503)), retry.telling(said.append), pytest.raises(Unavailable, match="SlowDown"):
        short.read("a")
    assert said and storage.uri in said[0]


def test_a_slow_answer_is_waited_for(storage, s3):
    with s3.behaving(puts(Delay(1.0))):
        storage.write("a", data=b"1")
    assert storage.read("a") == b"1"
