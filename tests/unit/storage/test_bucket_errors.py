"""What a bucket or folder answers, in words, and whether it passes."""

import errno
import io
import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from obstore import exceptions

from cft_ray.storage import bucket
from cft_ray.storage.bucket import Bucket
from cft_ray.storage.errors import StorageError
from cft_ray.storage.local import Folder


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


@pytest.mark.parametrize("named", [True, False])
def test_a_profile_that_is_asked_for_needs_boto3(monkeypatch, tmp_path, named):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", None)
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    if not named:
        assert bucket._profile() is None
        return
    monkeypatch.setenv("AWS_PROFILE", "default")
    with pytest.raises(StorageError, match="boto3, which is not installed"):
        bucket._profile()


def test_an_object_is_read_at_any_place_like_a_file():
    data = os.urandom(1000)
    there: Any = SimpleNamespace(_range=lambda path, start, stop, tag: data[start:stop])
    ours, file = bucket._Ranges(there, "x", len(data), None, nullcontext), io.BytesIO(data)
    for reader in (lambda stream: stream.read(10), lambda stream: stream.read(0), lambda stream: stream.read(2000)):
        for place in ((0, io.SEEK_SET), (700, io.SEEK_SET), (-3, io.SEEK_END), (-1, io.SEEK_CUR), (-20, io.SEEK_CUR)):
            assert ours.seek(*place) == file.seek(*place) and ours.tell() == file.tell()
            assert reader(ours) == reader(file) and ours.tell() == file.tell()
    assert ours.readable() and ours.seekable() and not ours.writable()
