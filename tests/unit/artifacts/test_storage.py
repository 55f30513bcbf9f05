"""The storage root on a local folder."""

import os
import pickle

import pytest

from cft_ray.artifacts.storage import Storage
from cft_ray.errors import UserError


def test_write_read_list_delete(tmp_path):
    storage = Storage(tmp_path / "new")
    assert storage.read("a", "b.json") is None and storage.list("a") == []
    storage.write("a", "b.json", data=b"1")
    storage.write("a", "b.json", data=b"22")
    assert storage.read("a", "b.json") == b"22" and storage.size("a", "b.json") == 2
    assert [info.base_name for info in storage.list("a")] == ["b.json"]  # no temporary file stays
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
    with pytest.raises(UserError, match="cannot be read") as raised:
        Storage("s3://bucket/run").list("artifacts")
    assert raised.value.where == "s3://bucket/run" and "\n" not in raised.value.what


@pytest.mark.parametrize("look", ["list", "read", "size", "kind"])
def test_a_storage_that_is_not_readable_is_one_message(tmp_path, monkeypatch, look):
    storage = Storage(tmp_path)

    class Closed:
        def __getattr__(self, name):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "filesystem", Closed())
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        getattr(storage, look)()
