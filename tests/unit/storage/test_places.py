"""What a storage may be called."""

from pathlib import Path

import pytest

from cft_ray.errors import UserError
from cft_ray.storage.location import WANTED, understood
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
        ("", "the place is empty", WANTED),
        ("s3:/bucket/x", "`s3:` begins neither", "s3://bucket/x"),
        ("GS:bucket", "`GS:` begins neither", "gs://bucket"),
        ("file:/x", "`file:` begins neither", WANTED),
        ("hdfs:x", "`hdfs:` begins neither", WANTED),
        ("other:/x", "`other:` begins neither", WANTED),
        ("ftp://x/y", "unknown scheme 'ftp'", WANTED),
        ("s3://me@bucket/x", "the URI carries credentials", None),
        ("s3://bucket/x?a=b", "options in a URI", None),
        ("s3://a/x", "'a' cannot be a bucket's name", None),
        ("/a\nb", "control characters", WANTED),
        ("file://", "no file's URI", None),
        ("file://machine/x", "no file's URI", "file:///FOLDER, or the folder itself"),
        ("s3:///x", "names no bucket", None),
        ("s3://bucket//x", "has an empty part", "write each `/` once"),
        ("s3://bucket/x//", "has an empty part", "write each `/` once"),
        ("s3://bucket/./x", "has a part `.` or `..`", None),
        ("s3://bucket/x/..", "has a part `.` or `..`", None),
        ("s3://bucket/a\x1fb", "control characters", None),
        ("s3://bucket/a\x7fb", "control characters", None),
        ("~no_such_user_here/x", "there is no user 'no_such_user_here'", "a path without `~`, or `./~…`"),
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
