"""Activations on disk, their rows of the table, and the prompts that they were read from."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from madetokenizers import tokenizer

from cft_ray.activations.measure import Part
from cft_ray.activations.prompts import Prompts, read_prompts, sample
from cft_ray.activations.store import Activations, Writer
from cft_ray.data.encoding import Encoder
from cft_ray.data.rows import table
from cft_ray.errors import UserError
from cft_ray.grid.settings import ActivationSettings, Template

PROMPTS = Prompts(["a", "b", "c", "d"], ["en", "de", "en", "fr"], [[1], [2, 3], [4], [5, 6, 7]], [False, True, False, False], 9)
MEANS = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3) ** 1.5


def test_parts_in_any_order_come_back_as_one_array(tmp_path):
    writer = Writer(PROMPTS, tmp_path)
    for places in ([3, 1], [0], [2]):
        writer.add(Part(places, MEANS[:, places], 0))
        assert not (tmp_path / "activations.npy").exists() and not (tmp_path / "prompts.parquet").exists()
    found = writer.close()
    np.testing.assert_array_equal(found.means, MEANS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["activations.npy", "prompts.parquet"]
    assert pq.read_table(tmp_path / "prompts.parquet").to_pylist() == [
        {"id": "a", "language": "en", "tokens": 1, "truncated": False},
        {"id": "b", "language": "de", "tokens": 2, "truncated": True},
        {"id": "c", "language": "en", "tokens": 1, "truncated": False},
        {"id": "d", "language": "fr", "tokens": 3, "truncated": False},
    ]
    again = Activations.read(tmp_path)
    np.testing.assert_array_equal(again.means, MEANS)
    assert again.means.dtype == np.float32 and not again.means.flags.writeable


def test_each_layer_has_a_row_for_all_prompts_and_for_each_language(tmp_path):
    writer = Writer(PROMPTS, tmp_path)
    writer.add(Part([0, 1, 2, 3], MEANS, 7))
    rows = list(writer.close().layers("m", "p"))
    assert [(row["layer"], row["language"], row["n"]) for row in rows] == [
        (layer, language, n) for layer in (0, 1) for language, n in ((None, 4), ("en", 2), ("de", 1), ("fr", 1))
    ]
    assert {(row["model"], row["prompts"]) for row in rows} == {("m", "p")}
    for row in rows:
        of = [place for place, language in enumerate(PROMPTS.languages) if row["language"] in (None, language)]
        part = MEANS[row["layer"], of].astype(np.float64)
        np.testing.assert_allclose(row["mean"], part.mean(0), rtol=1e-12)
        if len(of) == 1:
            assert (row["variance"], row["frobenius"], row["spectral"]) == (None, None, None)
            continue
        covariance = np.cov(part, rowvar=False)
        assert row["variance"] == pytest.approx(np.trace(covariance), rel=1e-9)
        assert row["frobenius"] == pytest.approx(np.linalg.norm(covariance), rel=1e-9)
        assert row["spectral"] == pytest.approx(np.linalg.norm(covariance, 2), rel=1e-9)


def test_what_is_no_artifact_of_the_kind(tmp_path):
    for content in (None, b"", b"no array"):
        if content is not None:
            (tmp_path / "activations.npy").write_bytes(content)
        with pytest.raises(UserError, match="holds no activations") as raised:
            Activations.read(tmp_path)
        assert raised.value.where == str(tmp_path)
    np.save(tmp_path / "activations.npy", MEANS)
    for content in (None, b"no table"):
        if content is not None:
            (tmp_path / "prompts.parquet").write_bytes(content)
        with pytest.raises(UserError, match="holds no activations"):
            Activations.read(tmp_path)
    np.save(tmp_path / "activations.npy", np.array([{"pickled": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="holds no activations"):
        Activations.read(tmp_path)


def test_all_rows_are_accounted_for():
    account = PROMPTS.account
    assert (account.came, account.used, account.set_aside, account.noted) == (9, 4, {"not_in_sample": 5}, {"truncated": 1})
    whole = Prompts(["a"], ["en"], [[1]], [False], 1).account
    assert (whole.came, whole.used, whole.set_aside, whole.noted) == (1, 1, {}, {})


ROWS = table(
    [
        {"id": "0", "language": "en", "instruction": "one", "output": "an answer"},
        {"id": "1", "language": "en", "system": "Be kind.", "instruction": "two", "input": "three"},
        {"id": "2", "language": "de", "input": "four"},
    ]
)


@pytest.mark.parametrize("family", ["gpt2", "llama3", "always"])
def test_prompts_are_read_as_generation_reads_them(family):
    made = tokenizer(family)
    for template in (Template(name="alpaca"), Template(name="plain")):
        found = read_prompts(ROWS, template, made, 10_000, where="x")
        assert found.tokens == Encoder(made, template).prompts(ROWS.to_pylist())
    bare = read_prompts(ROWS, None, made, 10_000, where="x")
    assert bare.tokens == Encoder(made, None).texts(["one", "Be kind.\n\ntwo\n\nthree", "four"])
    assert (bare.ids, bare.languages, bare.truncated, bare.available) == (["0", "1", "2"], ["en", "en", "de"], [False] * 3, 3)
    assert read_prompts(ROWS, None, made, 10_000, where="x", available=7).available == 7
    lengths = [len(ids) for ids in bare.tokens]
    cut = read_prompts(ROWS, None, made, lengths[0], where="x")
    assert cut.tokens == [ids[: lengths[0]] for ids in bare.tokens] and cut.truncated == [
        length > lengths[0] for length in lengths
    ]
    assert cut.truncated[0] is False and cut.truncated[1] is True


def test_a_row_without_a_prompt_is_named():
    made = tokenizer("gpt2")
    empty: Any = table([{"id": "good", "language": "en", "instruction": "x"}, {"id": "bad", "language": "en", "system": "only"}])
    for template in (None, Template(name="plain")):
        with pytest.raises(UserError, match="row bad has no prompt") as raised:
            read_prompts(empty, template, made, 10, where="the rows")
        assert raised.value.where == "the rows"


def test_a_sample_of_each_language_keeps_the_order_and_depends_on_the_seed():
    rows = table([{"id": f"{code}{n}", "language": code, "instruction": "x"} for n in range(30) for code in ("en", "de")])
    first, other = (sample(rows, ActivationSettings(sample=7, seed=seed))["id"].to_pylist() for seed in (0, 1))
    assert len(first) == 14 and first != other
    order = rows["id"].to_pylist()
    assert first == [name for name in order if name in first]
