"""Names, ids, revisions and places at the border between what may be one and what cannot."""

# ruff: noqa: E501 - tables read best with one case a line

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from cft_ray.grid import words


def taken(kind: Any, text: str) -> bool:
    try:
        return TypeAdapter(kind).validate_python(text) == text
    except ValidationError:
        return False


def fix(kind: Any, text: str) -> str:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(kind).validate_python(text)
    [error] = raised.value.errors()
    return error["ctx"]["fix"]  # pyright: ignore[reportTypedDictNotRequiredAccess]


@pytest.mark.parametrize("text", ["a", "…", "a.b", "llama-3.1", "x" * 100, "ж" * 100, "語" * 66, ".a", "...", "2024", "日本語"])
def test_a_name(text):
    assert taken(words.Name, text)


@pytest.mark.parametrize("text", ["", ".", "..", "x" * 101, "語" * 67, "a b", "a/b", "a\u200bb"])
def test_no_name(text):
    assert not taken(words.Name, text)


@pytest.mark.parametrize("text", ["a", "owner/name", "o_1/N.a-me", "x" * 96, "1/2", "a/b.gi"])
def test_an_id_of_the_hub(text):
    assert taken(words.Repository, text)


@pytest.mark.parametrize("text", ["x" * 97, "a/b.git", "a/b-", "a/b.", "a--b", "a..b", "-a", ".a", "a/", "a/b/c", "a b"])
def test_no_id_of_the_hub(text):
    assert not taken(words.Repository, text)


@pytest.mark.parametrize("text", ["main", "v1.0", "a" * 40, "refs/pr/3", "x" * 255, "feature/x-y", "a@b"])
def test_a_revision(text):
    assert taken(words.Revision, text)


@pytest.mark.parametrize("text", ["", "x" * 256, "a/.b", "a@{", "main."])
def test_no_revision(text):
    assert not taken(words.Revision, text)


@pytest.mark.parametrize(
    ("text", "known"),
    [("de", True), ("deu", True), ("d", False), ("deut", False), ("DE", False), ("d1", False), ("de\n", False)],
)
def test_a_language(text, known):
    assert taken(words.Language, text) == known


PLACES = [
    *("runs", "/data/x", "./a b", "runs/[v2]", "C:x", "a:b", "run:/x".replace("/", ""), "file:///data", "~", "~/x", "./~nobody", "~root/x"),
    *("s3://bucket", "s3://bucket/", "s3://bucket/a/b", "s3://abc/x/", "gs://my.bucket_1-x/a", "gcs://bucket/x", "s3://buc/a..b", "s3://" + "b" * 222),
    "d\u0331e/\u202f",
]  # fmt: skip
NO_PLACES = [
    *("", "  ", "a\nb", "a\x00", "a\u2028b", "file://x", "file://", "ssh://x/y", "s3://", "s3:///x", "s3://me@bucket/x", "s3://b/x"),
    *("s3://" + "b" * 223, "s3://bucket//a", "s3://bucket/a//b", "s3://bucket/a/./b", "s3://bucket/../b", "s3:/x", "S3://bucket/x", "file:/x"),
    *("http:/x", "dbfs:", "dbfs:x", "HDFS:x", "https:x", "~no-such-user-here/x"),
]  # fmt: skip


@pytest.mark.parametrize("text", PLACES, ids=ascii)
def test_a_place(text):
    assert taken(words.PlaceName, text)


@pytest.mark.parametrize("text", NO_PLACES, ids=ascii)
def test_no_place(text):
    assert not taken(words.PlaceName, text)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("s3:/bucket/x", "s3://bucket/x"),
        ("S3:bucket/x", "s3://bucket/x"),
        ("gs:///", None),
        ("gs:/", "a folder or file, s3://BUCKET/… or gs://BUCKET/…"),
        ("file:/x", "a folder or file, s3://BUCKET/… or gs://BUCKET/…"),
        ("dbfs:/mnt/x", "a folder or file, s3://BUCKET/… or gs://BUCKET/…"),
    ],
)
def test_a_misspelt_uri_is_mended(text, remedy):
    assert fix(words.PlaceName, text) == (remedy or "a folder or file, s3://BUCKET/… or gs://BUCKET/…")


def test_a_place_takes_no_options_and_a_name_may_have_a_question_mark():
    assert taken(words.PlaceName, "runs/what?") and taken(words.PlaceName, "s3://bucket/what?.jsonl")
    for text in ("s3://bucket/x?region=y", "s3://bucket?a", "s3://bucket/x?"):
        assert not taken(words.PlaceName, text)


@pytest.mark.parametrize(("seed", "fits"), [(0, True), (2**32 - 1, True), (2**32, False), (-1, False)])
def test_a_seed(seed, fits):
    adapter = TypeAdapter(words.Seed)
    if fits:
        assert adapter.validate_python(seed) == seed
    else:
        with pytest.raises(ValidationError):
            adapter.validate_python(seed)
