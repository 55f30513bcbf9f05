"""The tables of a divergence from sums by hand; whole comparisons of tiny models against PyTorch in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft_ray.data.accounts import RowAccount
from cft_ray.data.rows import table
from cft_ray.divergence import kl
from cft_ray.divergence.measure import Divergence, compare
from cft_ray.errors import UserError
from cft_ray.grid.settings import DivergenceSettings, ScratchModel, Template
from cft_ray.inference.model import LoadedModel, load
from cft_ray.training.model import create

SHAPE = ScratchModel(layers=1, hidden_size=64, heads=2, kv_heads=1, intermediate_size=64, max_positions=96)
PLAIN = Template(name="plain")


def found(**columns: list[Any]) -> Divergence:
    names = ("id", "language", "prompt_tokens", "answer_tokens", "prompt_nats", "answer_nats")
    return Divergence(pa.table({name: columns[name] for name in names}), 5, 2, RowAccount(came=5, used=3))


BY_HAND = found(
    id=["a", "b", "c"],
    language=["en", "de", "en"],
    prompt_tokens=[2, 3, 0],
    answer_tokens=[1, 0, 4],
    prompt_nats=[1.0, 6.0, 0.0],
    answer_nats=[0.5, 0.0, 2.0],
)


def test_means_are_over_tokens_by_hand():
    values = {(row["measure"], row["language"]): row["value"] for row in BY_HAND.similarity("l", "r")}
    assert values == {
        ("kl_prompt", None): 7 / 5, ("kl_answer", None): 2.5 / 5, ("kl_all", None): 9.5 / 10,
        ("kl_prompt", "en"): 1 / 2, ("kl_answer", "en"): 2.5 / 5, ("kl_all", "en"): 3.5 / 7,
        ("kl_prompt", "de"): 2.0, ("kl_all", "de"): 2.0,
    }  # fmt: skip
    assert {(row["left"], row["right"]) for row in BY_HAND.similarity("l", "r")} == {("l", "r")}
    assert BY_HAND.summary == {"rows": 3, "too_long": 2, "tokens": 10, "kl_prompt": 7 / 5, "kl_answer": 0.5, "kl_all": 0.95}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[LoadedModel, LoadedModel]:
    left, right = (load(str(create(SHAPE, seed, tmp_path_factory.mktemp(f"m{seed}")))) for seed in (0, 1))
    for model in (left, right):  # apart enough that no value is near 0
        model.head.weight.data *= 20
    return left, right


ROWS = table(
    [
        {"id": "a", "language": "en", "instruction": "one and one", "output": "two"},
        {"id": "b", "language": "de", "instruction": "", "output": "plain"},
        {"id": "c", "language": "en", "instruction": "a rather long question, if you ask me", "output": ""},
        {"id": "d", "language": "de", "instruction": "x", "output": "yes"},
    ]
)


def whole(
    pair: tuple[LoadedModel, LoadedModel], rows: pa.Table, template: Template, given: DivergenceSettings, **more: Any
) -> Divergence:
    left, right = pair
    return compare(left, right, rows, template, given, **more)


def settings(**changes: Any) -> DivergenceSettings:
    return DivergenceSettings(**{"batch_tokens": 40, **changes})


@torch.inference_mode()
def direct(pair: tuple[LoadedModel, LoadedModel], row: dict[str, str]) -> tuple[list[float], list[float]]:
    """One byte is one token; nothing predicts the first one, which begins the sequence."""
    tokenizer = pair[0].tokenizer
    prompt = row["instruction"] + ("\n\n" if row["instruction"] else "")
    ids = torch.tensor([[*tokenizer(prompt + row["output"]).input_ids, tokenizer.eos_token_id]])
    count = len(prompt)
    p, q = (model.causal(ids).logits[0, :-1].double().log_softmax(-1) for model in pair)
    values = (p.exp() * (p - q)).sum(-1).tolist()
    return values[:count], values[count:]


def test_it_is_the_divergence_of_left_from_right(pair):
    told: list[tuple[int, int]] = []
    result = whole(pair, ROWS, PLAIN, settings(), where="x", progress=lambda done, total: told.append((done, total)))
    for row, values in zip(result.rows.to_pylist(), ROWS.to_pylist(), strict=True):
        prompt, answer = direct(pair, values)
        assert (row["id"], row["language"]) == (values["id"], values["language"])
        assert (row["prompt_tokens"], row["answer_tokens"]) == (len(prompt), len(answer))
        assert row["prompt_nats"] == pytest.approx(sum(prompt), rel=1e-4)
        assert row["answer_nats"] == pytest.approx(sum(answer), rel=1e-4)
    tokens = sum(1 + row["prompt_tokens"] + row["answer_tokens"] for row in result.rows.to_pylist())
    assert told[-1] == (tokens, tokens) and len(told) > 1 and [done for done, _ in told] == sorted({done for done, _ in told})
    back = whole((pair[1], pair[0]), ROWS, PLAIN, settings(), where="x").summary
    assert back["kl_all"] != pytest.approx(result.summary["kl_all"], rel=1e-3)


def test_batches_do_not_matter(pair):
    together = whole(pair, ROWS, PLAIN, settings(batch_tokens=10_000), where="x").rows
    for tokens in (1, 30):
        again = whole(pair, ROWS, PLAIN, settings(batch_tokens=tokens), where="x").rows
        for name in ("prompt_nats", "answer_nats"):
            np.testing.assert_allclose(again[name].to_numpy(), together[name].to_numpy(), rtol=1e-5, atol=1e-8)


def test_rows_that_are_longer_than_either_model_reads_are_left_out_and_counted(pair, tmp_path):
    short = load(str(create(SHAPE.model_copy(update={"max_positions": 12}), 1, tmp_path)))
    for models, limit in (((pair[0], short), {}), ((short, pair[0]), {}), (pair, {"max_length": 12})):
        result = whole(models, ROWS, PLAIN, settings(**limit), where="x")
        assert result.rows["id"].to_pylist() == ["b", "d"] and result.too_long == 2 and result.drawn == 4
        account = result.account.checked("x")
        assert (account.came, account.used, account.set_aside) == (4, 2, {})


def test_a_sample_is_taken_in_the_order_of_the_rows(pair):
    many = pa.concat_tables(
        [ROWS.set_column(0, "id", pa.array([f"{n}{name}" for name in ROWS["id"].to_pylist()])) for n in range(5)]
    )
    order = many["id"].to_pylist()
    for sample, used in ((3, 3), (20, 20), (99, 20), (None, 20)):
        result = whole(pair, many, PLAIN, settings(sample=sample), where="x")
        ids = result.rows["id"].to_pylist()
        assert len(ids) == result.drawn == used and ids == [name for name in order if name in ids]
        assert result.account.set_aside == ({"not_in_sample": 20 - used} if used < 20 else {}) and result.account.came == 20
    first, other = (whole(pair, many, PLAIN, settings(sample=3, seed=seed), where="x").rows["id"].to_pylist() for seed in (0, 1))
    assert first != other


def test_predictions_that_are_not_finite_are_the_models_that_made_them(pair, tmp_path):
    broken = load(str(create(SHAPE, 3, tmp_path)))
    broken.head.weight.data[5] = float("inf")
    good = LoadedModel("good", pair[0].causal, pair[0].tokenizer, pair[0].positions, pair[0].outputs)
    for models in ((good, broken), (broken, good)):
        with pytest.raises(UserError, match="not finite") as raised:
            _without_checks(models)
        assert raised.value.where == str(tmp_path)
    # Finite on both sides, and too far apart for float32.
    far = load(str(create(SHAPE, 4, tmp_path / "far")))
    far.head.weight.data.fill_(3e38)
    with pytest.raises(UserError, match="the divergence is not finite") as raised:
        _without_checks((good, far))
    assert raised.value.where == f"good and {tmp_path / 'far'}"


def _without_checks(models: tuple[LoadedModel, LoadedModel]) -> None:
    from cft_ray.divergence import measure

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure, "_check", lambda left, right: None)
        whole(models, ROWS, PLAIN, settings(), where="x")


def test_models_of_other_vocabularies_cannot_be_compared(pair, tmp_path):
    folder = Path(pair[0].folder)
    causal, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    causal.resize_token_embeddings(size + 2)
    causal.save_pretrained(tmp_path / "larger")
    tokenizer.save_pretrained(tmp_path / "larger")
    larger = load(str(tmp_path / "larger"))
    with pytest.raises(UserError, match=f"{size} and {size + 2} tokens"):
        compare(pair[0], larger, ROWS, PLAIN, settings(), where="x")
    with pytest.raises(UserError, match=f"{size + 2} and {size} tokens"):
        compare(larger, pair[0], ROWS, PLAIN, settings(), where="x")
    tokenizer.add_tokens(["another"])
    renamed = LoadedModel(pair[1].folder, pair[1].causal, tokenizer, pair[1].positions, pair[1].outputs)
    with pytest.raises(UserError, match="the same numbers to other tokens"):
        compare(pair[0], renamed, ROWS, PLAIN, settings(), where="x")


@pytest.mark.parametrize(("block", "calls"), [(1, 7), (10, 7), (20, 4), (21, 4), (29, 4), (30, 3), (70, 1), (1000, 1)])
def test_as_many_positions_at_a_time_as_a_block_holds(monkeypatch, block, calls):
    """Seven positions of a vocabulary of ten."""
    monkeypatch.setattr(kl, "BLOCK", block)
    seen: list[int] = []

    def scores(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return hidden.clone()

    torch.manual_seed(0)
    left, right = torch.randn(2, 7, 10).unbind()
    result = kl.divergences(left, right, (scores, scores), 10)
    p, q = left.double().log_softmax(-1), right.double().log_softmax(-1)
    torch.testing.assert_close(result, (p.exp() * (p - q)).sum(-1), rtol=1e-5, atol=1e-7)
    assert len(seen) == 2 * calls and max(seen) * 10 <= max(block, 10) and result.dtype == torch.float64
