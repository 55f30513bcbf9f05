"""What a storage may be called."""

from pathlib import Path

import pytest

from cft_ray.errors import UserError
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
