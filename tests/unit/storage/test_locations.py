"""What a storage may be called, what its errors are said to be, and how long it is waited for: at the borders."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from obstore import exceptions

from cft_ray.errors import UserError
from cft_ray.storage import bucket, local, retry
from cft_ray.storage.bucket import Bucket
from cft_ray.storage.entry import Entry, Version
from cft_ray.storage.errors import StorageError, Unavailable
from cft_ray.storage.local import Folder, remove_local, write_local
from cft_ray.storage.location import understood
from cft_ray.storage.root import Storage


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/a/b/", ("file", "", "/a/b")),
        ("/", ("file", "", "/")),
        ("//", ("file", "", "/")),
        ("file:///a%20b/c", ("file", "", "/a b/c")),
        ("file://localhost/a", ("file", "", "/a")),
        ("s3://bucket", ("s3", "bucket", "")),
        ("s3://bucket/", ("s3", "bucket", "")),
        ("s3://bucket/a/b/", ("s3", "bucket", "a/b")),
        ("gs://bucket/a", ("gs", "bucket", "a")),
        ("gcs://bucket/a", ("gs", "bucket", "a")),
        ("s3://bucket/a..b/.c", ("s3", "bucket", "a..b/.c")),
        ("s3://bucket/a b~", ("s3", "bucket", "a b~")),
    ],
)
def test_a_place(text, found):
    assert understood(text) == found


def test_a_relative_folder_is_below_the_working_directory_and_home_is_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, path in (
        ("a", tmp_path / "a"),
        ("./a/..b", tmp_path / "a" / "..b"),
        ("~", Path.home()),
        ("~/x", Path.home() / "x"),
        ("a:b", tmp_path / "a:b"),
    ):
        assert understood(text) == ("file", "", str(path))


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("", "the storage is empty", "use a folder, s3://BUCKET/… or gs://BUCKET/…"),
        ("s3:/bucket/x", "`s3:` begins neither", "s3://bucket/x"),
        ("GS:bucket", "`GS:` begins neither", "gs://bucket"),
        ("file:/x", "`file:` begins neither", "use a folder, s3://BUCKET/… or gs://BUCKET/…"),
        ("hdfs:x", "`hdfs:` begins neither", "use a folder, s3://BUCKET/… or gs://BUCKET/…"),
        ("other:/x", "`other:` begins neither", "use a folder, s3://BUCKET/… or gs://BUCKET/…"),
        ("ftp://x/y", "unknown storage scheme 'ftp'", "use a folder, s3://BUCKET/… or gs://BUCKET/…"),
        ("s3://me@bucket/x", "the storage URI carries credentials", None),
        ("s3://bucket/x?a=b", "options in a storage URI", None),
        ("file://machine/x", "a file URI names no machine", "file:///folder, or the folder alone"),
        ("s3:///x", "the storage names no bucket", None),
        ("s3://bucket//x", "has an empty part", "write each `/` once"),
        ("s3://bucket/x//", "has an empty part", "write each `/` once"),
        ("s3://bucket/./x", "has a part `.` or `..`", None),
        ("s3://bucket/x/..", "has a part `.` or `..`", None),
        ("s3://bucket/a\x1fb", "has a control character", None),
        ("s3://bucket/a\x7fb", "has a control character", None),
        ("~no_such_user_here/x", "the storage cannot be opened", "check the path"),
    ],
    ids=ascii,
)
def test_no_place(text, what, fix):
    with pytest.raises(UserError) as raised:
        understood(text)
    assert what in raised.value.what and (fix is None or raised.value.fix == fix)


@pytest.mark.parametrize(
    ("uri", "parts", "path", "location"),
    [
        ("/data/x", ("a", "b"), "/data/x/a/b", "/data/x/a/b"),
        ("/data/x", (), "/data/x", "/data/x"),
        ("/", ("a",), "/a", "/a"),
        ("/", (), "/", "/"),
        ("s3://bucket/p", ("a", "b"), "p/a/b", "s3://bucket/p/a/b"),
        ("s3://bucket", ("a",), "a", "s3://bucket/a"),
        ("gcs://bucket", (), "", "gs://bucket"),
    ],
)
def test_things_are_named_by_parts_below_the_root(uri, parts, path, location):
    storage = Storage(uri)
    assert (storage.path(*parts), storage.location(*parts), storage.local) == (path, location, uri.startswith("/"))
    if storage.local:
        assert storage.folder(*parts) == Path(path)


# --- errors of a bucket ----------------------------------------------------------------------------------------------------


def said(status: str = "", code: str = "", message: str = "", more: str = "") -> str:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    server = f"Server returned non-2xx status code: {status}: " if status else ""
    return f"Generic S3 error: {server}{body}{more}\n\nDebug source:\nHTTP error"


@pytest.mark.parametrize(
    ("error", "passes", "words"),
    [
        (exceptions.GenericError(said("500 Internal Server Error")), True, "500 Internal Server Error"),
        (exceptions.GenericError(said("503 Service Unavailable")), True, "503 Service Unavailable"),
        (exceptions.GenericError(said("499 Odd")), False, "499 Odd"),
        (exceptions.GenericError(said("501 Not Implemented")), False, "501 Not Implemented"),
        (exceptions.GenericError(said("502 Bad Gateway")), True, "502 Bad Gateway"),
        (exceptions.GenericError(said("408 Request Timeout")), True, "408 Request Timeout"),
        (exceptions.GenericError(said("425 Too Early")), True, "425 Too Early"),
        (exceptions.GenericError(said("429 Too Many Requests")), True, "429 Too Many Requests"),
        (exceptions.GenericError(said("403 Forbidden")), False, "403 Forbidden"),
        (
            exceptions.PermissionDeniedError(said("403 Forbidden", "AccessDenied", "Access denied.")),
            False,
            "403 Forbidden, AccessDenied, Access denied.",
        ),
        (
            exceptions.PermissionDeniedError(said("403 Forbidden", "ExpiredToken", "It has expired.")),
            True,
            "403 Forbidden, ExpiredToken, It has expired.",
        ),
        (exceptions.GenericError(said("400 Bad Request", "RequestTimeout", "")), True, "400 Bad Request, RequestTimeout"),
        (exceptions.GenericError(said("", "SlowDown", "Slower.")), True, "SlowDown, Slower."),
        (exceptions.GenericError(said(more="HTTP error: error sending request")), True, "no answer (error sending request)"),
        (exceptions.GenericError(said(more="HTTP error:  ")), True, "no answer (connection lost)"),
        (
            exceptions.GenericError(said(more="Received redirect without LOCATION")),
            False,
            "it lies in another region (set AWS_REGION)",
        ),
        (exceptions.NotFoundError("Object at location x not found\nmore"), False, "Object at location x not found"),
        (exceptions.GenericError(""), False, "GenericError"),
        (ConnectionResetError("gone"), True, "gone"),
        (TimeoutError("late"), True, "late"),
        (ValueError("other"), False, "other"),
        (bucket._Conflict("two"), True, "two"),
    ],
    ids=lambda item: "",
)
def test_what_a_bucket_answers_may_pass_or_not(error, passes, words):
    there = Bucket("s3", "b")
    assert there.transient(error) is passes and there.refused(error) == words


@pytest.mark.parametrize(
    ("number", "passes"),
    [(errno.EIO, True), (errno.ESTALE, True), (errno.EBUSY, True), (errno.EACCES, False), (errno.ENOSPC, False)],
)
def test_what_a_folder_answers_may_pass_or_not(number, passes):
    folder = Folder("/x")
    assert folder.transient(OSError(number, "words")) is passes and folder.refused(OSError(number, "words")) == "words"
    assert not folder.transient(ValueError("x"))


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({}, {"region": "asked"}),
        ({"AWS_REGION": "r"}, {}),
        ({"AWS_DEFAULT_REGION": "r"}, {}),
        ({"AWS_ENDPOINT_URL": "http://h"}, {"region": "us-east-1"}),
        ({"AWS_ENDPOINT": "https://h"}, {"region": "us-east-1"}),
        ({"AWS_ENDPOINT_URL_S3": "https://h", "AWS_ENDPOINT_URL": "http://h"}, {"region": "us-east-1"}),
    ],
    ids=str,
)
def test_a_store_is_told_region_and_whether_plain_http_is_meant(monkeypatch, variables, options):
    from obstore import store

    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_ACCESS_KEY_ID": "x", **variables}.items():
        monkeypatch.setenv(name, value)
    told: dict[str, Any] = {}
    monkeypatch.setattr(store, "S3Store", lambda name, **given: told.update(given, name=name))
    monkeypatch.setattr(bucket, "_region", lambda name: "asked")
    _ = Bucket("s3", "b")._store
    endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL") or ""
    assert told["client_options"]["allow_http"] is endpoint.startswith("http://") and told["name"] == "b"
    assert {name: told[name] for name in ("region",) if name in told} == options
    assert "credential_provider" not in told and told["retry_config"]["max_retries"] == 6


def test_a_profile_is_read_where_the_environment_has_no_credentials(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert bucket._profile() is None
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"):
        monkeypatch.setenv(name, "x")
        assert bucket._profile() is None
        monkeypatch.delenv(name)
    pytest.importorskip("boto3")
    provider: Any = bucket._profile()
    assert provider is not None and provider()["access_key_id"] == "a"


# --- files of a folder -----------------------------------------------------------------------------------------------------


def test_a_file_keeps_its_mode_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "deep" / "file"
    write_local(path, b"1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()
    path.chmod(0o640)
    write_local(path, b"22")
    assert path.read_bytes() == b"22" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for write in (
        lambda: write_local(path, b"x"),
        lambda: Folder("x").create(str(tmp_path / "new"), b"x"),
        lambda: Folder("x").upload(path, str(tmp_path / "up")),
    ):
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write()
        monkeypatch.undo()
        assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"before")]


def test_a_long_name_is_no_obstacle_to_its_temporary_sibling(tmp_path):
    name = "x" * 250
    write_local(tmp_path / name, b"1")
    assert Folder("x").create(str(tmp_path / ("y" * 250)), b"1") is not None
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [250, 250]


def test_where_links_are_refused_for_another_reason_it_is_said(tmp_path, monkeypatch):
    def link(*_: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="Permission denied"):
        Folder("x").create(str(tmp_path / "a"), b"1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV])
def test_without_links_the_first_of_two_stays_as_well(tmp_path, monkeypatch, number):
    def link(*_: Any) -> None:
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", link)
    folder, path = Folder("x"), str(tmp_path / "a")
    first = folder.create(path, b"1")
    assert first is not None and folder.create(path, b"2") is None and folder.read(path) == (b"1", first)
    assert {each.name for each in tmp_path.iterdir()} == {"a", ".lock"}


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(local.fcntl, "flock", flock)
    with pytest.raises(UserError, match="no file locks") as raised:
        Folder("x").replace(str(tmp_path / "a"), b"1", Version("x"))
    assert raised.value.where == str(tmp_path)


def test_sizes_kinds_and_what_is_no_file(tmp_path):
    (tmp_path / "file").write_bytes(b"123")
    folder = Folder("x")
    os.mkfifo(tmp_path / "pipe")
    assert [folder.size(str(tmp_path / name)) for name in ("file", "", "no", "file/x", "pipe")] == [3, None, None, None, None]
    assert [folder.kind(str(tmp_path / name)) for name in ("file", "", "no", "file/x")] == ["file", "folder", None, None]
    assert folder.read(str(tmp_path / "file"), 3) is not None and folder.read(str(tmp_path / "no"), 3) is None
    with pytest.raises(ValueError, match="has 3 bytes, more than 2"):
        folder.read(str(tmp_path / "file"), 2)
    assert folder.read(str(tmp_path / "file" / "x")) is None and folder.list(str(tmp_path / "file"), recursive=False) == []
    assert Entry("a", 0).is_file and not Entry("a", None).is_file


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    folder = Folder("x")
    folder.delete(str(tmp_path / "link"))
    assert (tmp_path / "there" / "file").exists() and not (tmp_path / "link").is_symlink()
    folder.delete(str(tmp_path / "there" / "file"))
    folder.delete(str(tmp_path / "there" / "file" / "below"))
    assert (tmp_path / "there").is_dir() and not list((tmp_path / "there").iterdir())
    folder.delete(str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    remove_local(tmp_path / "there")


def test_a_listing_has_times_and_sizes(tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_bytes(b"12")
    os.utime(tmp_path / "d" / "e" / "f", (1_000_000, 1_000_000))
    (found,) = Folder("x").list(str(tmp_path / "d"), recursive=True)
    assert (found.name, found.size) == ("e/f", 2) and found.changed is not None and found.changed.timestamp() == 1_000_000
    (found,) = Folder("x").list(str(tmp_path / "d"), recursive=False)
    assert (found.name, found.size, found.is_file) == ("e", None, False) and found.changed is not None


# --- patience --------------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(retry, "time", made)
    monkeypatch.setattr(retry, "_impatient", False)
    monkeypatch.setattr(retry, "_heard", set())
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)  # the longest pauses
    return made


def test_pauses_double_up_to_a_limit_and_end_with_the_patience(clock):
    times: list[float] = []

    def call() -> None:
        times.append(round(clock.now, 6))
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        retry.patiently(call, lambda _: True, where="x", seconds=60)
    assert times == [0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4, 40.4, 55.4, 60.0]


def test_it_is_told_after_some_seconds_and_then_now_and_then(clock):
    told: list[tuple[float, str]] = []

    def call() -> None:
        raise OSError("away\nwith details")

    with retry.telling(lambda text: told.append((round(clock.now, 3), text))), pytest.raises(OSError, match="away"):
        retry.patiently(call, lambda _: True, where="s3://b", seconds=200)
    assert [when for when, _ in told] == [3.0, 40.4, 70.4, 100.4, 130.4, 160.4, 190.4]
    assert told[0][1] == "s3://b does not answer (away); trying again for 3 min more"
    assert told[-1][1] == "s3://b does not answer (away); trying again for 10 s more"
    with retry.telling(lambda text: told.append((0, text))), pytest.raises(OSError, match="away"):
        retry.patiently(call, lambda _: True, where="x", seconds=93, words=lambda error: "in words")
    assert told[7][1] == "x does not answer (in words); trying again for 2 min more"


def test_patience_is_a_setting_that_must_be_a_number(monkeypatch):
    for text, seconds in (("5", 5.0), ("0.5", 0.5), ("-3", 0.0), ("long", 600.0), ("", 600.0)):
        monkeypatch.setenv(retry.VARIABLE, text)
        assert retry.patience() == seconds


def test_an_error_in_one_line():
    assert retry.reason(OSError(errno.EIO, "Input/output error", "x")) == "Input/output error"
    assert retry.reason(ValueError("one\ntwo")) == "one" and retry.reason(ValueError(" \n")) == "ValueError"


def test_the_listener_before_is_back_afterwards(clock):
    heard: list[str] = []
    with retry.telling(heard.append):
        with retry.telling(lambda text: None):
            pass
        retry._tell("again")
    assert heard == ["again"]


def test_errors_of_a_storage_are_said_once_and_of_their_sort(tmp_path):
    storage: Any = Storage(tmp_path, patience=0)

    def raising(error: Exception) -> Any:
        def call() -> None:
            raise error

        return call

    for error, sort, what in (
        (OSError(errno.EIO, "away"), Unavailable, "the storage cannot be read: away"),
        (PermissionError(errno.EACCES, "Permission denied"), StorageError, "the storage cannot be read: Permission denied"),
    ):
        with pytest.raises(StorageError) as raised:
            storage._ask("cannot be read", raising(error))
        assert type(raised.value) is sort and raised.value.what == what and raised.value.where == str(tmp_path)
    for error in (ValueError("x"), KeyError("x"), StorageError("x")):
        with pytest.raises(type(error)):
            storage._ask("cannot be read", raising(error))
    with pytest.raises(FileNotFoundError):
        storage._ask("cannot be read", raising(FileNotFoundError(errno.ENOENT, "No such file")))
    with pytest.raises(StorageError, match="cannot be written to: No such file"):
        storage._ask("cannot be written to", raising(FileNotFoundError(errno.ENOENT, "No such file")))


def test_a_storage_that_ignores_conditions_is_refused(tmp_path, monkeypatch):
    def create(self: Folder, path: str, data: bytes) -> Version:
        return self.write(path, data)

    monkeypatch.setattr(Folder, "create", create)
    with pytest.raises(StorageError, match="ignores conditional writes"):
        Storage(tmp_path).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_copied_to_the_root_and_back(tmp_path):
    source = tmp_path / "source"
    for name in ("a", "b/c", "b/d/e"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    storage = Storage(tmp_path / "root")
    storage.fill(source)
    assert [(entry.name, entry.size) for entry in storage.list(recursive=True)] == [("a", 1), ("b/c", 3), ("b/d/e", 5)]
    storage.mirror(tmp_path / "back", "b")
    back = [path for path in (tmp_path / "back").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "back").as_posix(): path.read_text() for path in back} == {"c": "b/c", "d/e": "b/d/e"}
    storage.sync("b")
