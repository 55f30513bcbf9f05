"""What no error text may hold, and names that never make a path."""

import json
import os
import stat
from pathlib import Path

import pytest

from cft_ray.data.cache import FileCache
from cft_ray.data.languages import filled
from cft_ray.errors import UserError, without_secrets
from cft_ray.evaluation.alpaca_eval.endpoint import _without
from cft_ray.execute.attempt import LONGEST_ERROR, describe
from cft_ray.report.write import file_name

SIGNED = "https://cdn.hub.example/repos/ab/model.safetensors?X-Amz-Signature=5f3c9e&X-Amz-Credential=AKIAABCDEFGHIJKLMNOP"
KEY = "k-9fJ2mQ7xLpW4vZ8tRb3N"


@pytest.mark.parametrize(
    ("text", "secret", "stays"),
    [
        (
            f"403 Client Error: Forbidden for url: {SIGNED} (Request ID: Root=1)",
            "5f3c9e",
            "https://cdn.hub.example/repos/ab/model",
        ),
        (f"GET '{SIGNED}' failed", "X-Amz", "failed"),
        ("cannot clone https://me:hunter2@git.example/x", "hunter2", "git.example/x"),
        ("s3://AKIAABCDEFGH:abc+def/g@bucket/x", "AKIAABCDEFGH", "bucket/x"),
        ("Authorization: Bearer abc.def-ghi_jkl", "abc.def", "Authorization"),
        ("Illegal header value b'Bearer sk-proj-1234567890'", "1234567890", "Illegal header value"),
        ("token hf_abcdefghijklmnop is not valid", "abcdefghijklmnop", "is not valid"),
        ("HF_HUB_OFFLINE forbids it, hf_abcdefghijklmnop or not", "abcdefghijklmnop", "HF_HUB_OFFLINE forbids it"),
        ("key AKIAABCDEFGHIJKLMNOP is unknown", "ABCDEFGHIJKLMNOP", "is unknown"),
    ],
)
def test_signatures_logins_and_tokens_are_left_out(text, secret, stays):
    assert secret not in without_secrets(text) and stays in without_secrets(text)


def test_what_is_no_secret_stays():
    for text in (
        "is it https://hub.example/a/b? yes",
        "a sky-blue task",
        "s3://bucket/x@y",
        "C:\\x?y",
        "10 > 9 ? 1 : 2",
        "a basic problem",
    ):
        assert without_secrets(text) == text


def test_an_error_is_cut_only_after_its_secrets_are_gone():
    """A key whose beginning falls to the cut would not be known as one any more."""

    def fail(padding: int) -> str:
        try:
            raise RuntimeError(f"{'x' * 50} Bearer {KEY} {'y' * padding}")
        except RuntimeError as error:
            return describe(error)

    for padding in range(LONGEST_ERROR - 120, LONGEST_ERROR + 10):
        assert KEY[-8:] not in fail(padding)


@pytest.mark.parametrize(
    "quoted",
    [
        KEY,
        KEY.upper(),
        KEY[:10],
        KEY[-9:],
        f"{KEY[:8]}***",
        f"'{KEY}'",
        f"{KEY}{KEY}",
        f"key={KEY}&x=1",
        json.dumps({"key": KEY}),
    ],
)
def test_no_piece_of_a_key_is_repeated(quoted):
    said = _without(f"Incorrect API key provided: {quoted}. See the documents.", KEY)
    assert said.startswith("Incorrect API key provided: ") and said.endswith(" See the documents.")
    assert not any(KEY[place : place + 8].casefold() in said.casefold() for place in range(len(KEY) - 7)), said


NAMES = [
    "..",
    ".",
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "",
    "-rf",
    ".hidden",
    "x" * 300,
    "語" * 150,
    "a b",
    "con:",
    "a\nb",
]


def test_a_name_from_a_table_is_one_file_in_the_folder(tmp_path):
    made = [file_name(name) for name in NAMES]
    assert len(set(made)) == len(NAMES)
    for name in made:
        path = tmp_path / name
        path.mkdir()
        assert path.parent == tmp_path and path.resolve().parent == tmp_path.resolve()
    assert [file_name(name) for name in ("smoke", "llama-3.1", "größe_2")] == ["smoke", "llama-3.1", "größe_2"]


@pytest.mark.parametrize("language", ["../x", "a/b", "..", "de.", "de\0", "de/../../etc", "*"])
def test_a_language_leads_nowhere_else(language):
    with pytest.raises(UserError):
        filled("data/{language}.jsonl", language)


def test_weights_have_the_rights_that_the_umask_leaves(tmp_path):
    import torch

    from cft_ray.training.export import _flush

    before = os.umask(0o027)
    try:
        (tmp_path / "model").mkdir()
        _flush(tmp_path / "model", {"w": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()] == [0o640]


def test_files_have_the_rights_that_the_umask_leaves(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o027, 0o640), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            cache = FileCache("x", tmp_path / f"{mask:o}")
            cache.put("a", "b")
            cache.save()
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{mask:o}").stat().st_mode) == mode
    assert {path.name for path in Path(tmp_path).iterdir()} == {"22", "27", "77"}
