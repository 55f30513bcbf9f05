"""Every measure of planted answers by hand, beside the likelihoods of a tiny model against PyTorch's own loss."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from cft_ray.data.rows import table
from cft_ray.errors import UserError
from cft_ray.grid.settings import ScratchModel, Template
from cft_ray.inference.model import LoadedModel, load
from cft_ray.models.outputs import Outputs
from cft_ray.replay_quality import perplexity
from cft_ray.replay_quality.measure import measure_quality
from cft_ray.replay_quality.perplexity import likelihoods
from cft_ray.replay_quality.text import SELF_BLEU_ANSWERS, self_bleu
from cft_ray.training.model import create

SHAPE = ScratchModel(layers=1, hidden_size=64, heads=2, kv_heads=1, intermediate_size=64, max_positions=64)
PLAIN = Template(name="plain")
GERMAN = "Das Wetter war gut, also gingen wir lange am Fluss entlang spazieren."
ENGLISH = "The weather was good, so we went for a walk."


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LoadedModel:
    made = load(str(create(SHAPE, 0, tmp_path_factory.mktemp("model"))))
    made.head.weight.data *= 20
    return made


def english(*outputs: str) -> pa.Table:
    return table([{"id": f"p{n}", "language": "de", "instruction": f"{n}", "output": output} for n, output in enumerate(outputs)])


def replay(*answers: tuple[str, str, str, str]) -> pa.Table:
    """(prompt, language, answer, finish reason)."""
    rows = table(
        [
            {"id": f"r{n}", "language": language, "instruction": name[1:], "output": text}
            for n, (name, language, text, _) in enumerate(answers)
        ]
    )
    rows = rows.append_column("prompt_id", pa.array([name for name, *_ in answers]))
    return rows.append_column("finish_reason", pa.array([reason for *_, reason in answers]))


def test_every_measure_by_hand(model):
    told: list[tuple[int, int]] = []
    answers = replay(
        ("p1", "de", GERMAN, "stop"), ("p0", "de", ENGLISH, "stop"), ("p1", "en", "a b a b a", "length"),
        ("p0", "de", " ", "stop"), ("p1", "de", "", "length"),
    )  # fmt: skip
    found = measure_quality(
        answers,
        english("so", "x y", "unused"),
        model,
        PLAIN,
        max_length=64,
        seed=0,
        progress=lambda done, total: told.append((done, total)),
    )
    rows = found.rows.to_pylist()
    assert [(row["side"], row["id"], row["prompt_id"]) for row in rows] == [
        *(("generated", f"r{n}", name) for n, name in enumerate(("p1", "p0", "p1", "p0", "p1"))),
        ("original", "p1", "p1"), ("original", "p0", "p0"),
    ]  # fmt: skip
    assert [row["identified"] for row in rows[:2]] == ["de", "en"] and rows[3]["identified"] is None
    assert [row["empty"] for row in rows] == [False, False, False, True, True, False, False]
    assert [row["truncated"] for row in rows] == [False, False, True, False, True, False, False]
    assert [row["words"] for row in rows] == [14, 12, 5, 0, 0, 2, 1] and [row["characters"] for row in rows][2:] == [
        9,
        1,
        0,
        3,
        2,
    ]
    values = {(m["side"], m["language"], m["measure"]): (m["value"], m["n"]) for m in found.measures}
    lengths = [len(GERMAN), len(ENGLISH), 9, 1, 0]
    for name, share in (("q05", 0.05), ("q25", 0.25), ("q50", 0.5), ("q75", 0.75), ("q95", 0.95)):
        assert values["generated", None, f"characters_{name}"] == (pytest.approx(np.quantile(lengths, share)), 5)
    assert values["generated", None, "characters_mean"] == (pytest.approx(sum(lengths) / 5), 5)
    assert values["generated", None, "empty"] == (pytest.approx(2 / 5), 5) and values["generated", "en", "empty"] == (0.0, 1)
    assert values["generated", None, "truncated"] == (pytest.approx(2 / 5), 5)
    assert values["generated", None, "language_expected"][1] == 3  # of two nothing can be said
    assert values["generated", "de", "language_expected"] == (pytest.approx(1 / 2), 2)
    assert values["generated", "en", "rep_2"] == (pytest.approx(1 - 2 / 4), 1) and values["generated", "en", "rep_3"] == (
        pytest.approx(1 - 2 / 3), 1,
    )  # fmt: skip
    assert values["generated", "en", "rep_4"] == (0.0, 1)
    assert values["generated", None, "self_bleu"][1] == 3 and values["original", None, "self_bleu"][1] == 2
    assert ("generated", "en", "self_bleu") not in values and ("original", None, "truncated") not in values
    assert values["original", None, "words_mean"] == (1.5, 2) and values["original", "de", "tokens_mean"] == (2.5, 2)
    # The perplexity is over the tokens of all answers that fit.
    scored = [row for row in rows[:5] if row["scored_tokens"]]
    tokens = sum(row["scored_tokens"] for row in scored)
    assert values["generated", None, "perplexity"] == (pytest.approx(np.exp(sum(row["nats"] for row in scored) / tokens)), tokens)
    assert {done for done, _ in told if done == _} and told[0][0] <= told[0][1]


def test_an_original_is_there_once_and_a_prompt_must_be_among_them(model):
    answers = replay(("p9", "de", "a", "stop"), ("p0", "de", "b", "stop"), ("p8", "de", "c", "stop"))
    with pytest.raises(UserError, match=r"2 replayed prompts are not among the rows given, e\.g\. 'p9'"):
        measure_quality(answers, english("x"), model, PLAIN, max_length=64, seed=0)


@torch.inference_mode()
def direct(model: LoadedModel, row: dict[str, str], ended: bool) -> tuple[float, int]:
    prompt = model.tokenizer(row["instruction"] + "\n\n").input_ids
    answer = model.tokenizer(row["output"], add_special_tokens=False).input_ids + [model.tokenizer.eos_token_id] * ended
    scores = model.causal(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return -float(scores[range(len(answer)), answer].sum()), len(answer)


ROWS = english("one", "a longer answer", "", "x", "y" * 80)


@pytest.mark.parametrize("at_once", [1, 1000, 2**24])
def test_likelihoods_are_those_of_the_model(model, monkeypatch, at_once):
    monkeypatch.setattr(perplexity, "LOGITS_AT_ONCE", at_once)
    told: list[tuple[int, int]] = []
    ended = [True, False, True, True, True]
    nats, tokens = likelihoods(model, ROWS, ended, PLAIN, 10_000, lambda done, total: told.append((done, total)))
    expected = [direct(model, row, each) for row, each in zip(ROWS.to_pylist()[:4], ended, strict=False)]
    np.testing.assert_allclose(nats[:4], [value for value, _ in expected], rtol=1e-4)
    assert tokens.tolist() == [*(count for _, count in expected), 0] and nats[4] == 0 and tokens.dtype == np.int64
    read = sum(4 + count for _, count in expected)  # the beginning, the instruction, a blank line
    assert told[-1] == (read, read)


def test_small_batches_are_told_one_after_the_other(model, monkeypatch):
    monkeypatch.setattr(perplexity, "BATCH_TOKENS", 20)
    told: list[int] = []
    nats, _ = likelihoods(model, ROWS, [True] * 5, PLAIN, 64, lambda done, total: told.append(done))
    assert len(told) > 1 and told == sorted(set(told))
    monkeypatch.undo()
    np.testing.assert_allclose(nats, likelihoods(model, ROWS, [True] * 5, PLAIN, 64)[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("limit", "scored"), [(5, [0, 0, 1, 0, 0]), (6, [0, 0, 1, 2, 0]), (8, [4, 0, 1, 2, 0]), (7, [0, 0, 1, 2, 0])]
)
def test_rows_as_long_as_the_limit_are_scored_and_longer_ones_not(model, limit, scored):
    assert likelihoods(model, ROWS, [True] * 5, PLAIN, limit)[1].tolist() == scored


def test_nothing_is_said_of_nothing(model):
    for rows, ended in ((ROWS.slice(0, 0), []), (english("", ""), [False, False])):
        nats, tokens = likelihoods(model, rows, ended, PLAIN, 64)
        assert nats.tolist() == [0.0] * len(ended) and tokens.tolist() == [0] * len(ended)
    nats, tokens = likelihoods(model, english("", "a"), [False, False], PLAIN, 64)
    assert tokens.tolist() == [0, 1] and nats[0] == 0 < nats[1]


def test_a_model_whose_head_is_not_what_it_predicts_by_is_refused(model, monkeypatch):
    other = LoadedModel(model.folder, model.causal, model.tokenizer, model.positions, Outputs(scale=3.0))
    with pytest.raises(UserError, match="changes its head's output"):
        likelihoods(other, ROWS, [True] * 5, PLAIN, 64)
    monkeypatch.setattr(LoadedModel, "scores", lambda self, hidden: torch.full((len(hidden), 259), float("nan")))
    monkeypatch.setattr(LoadedModel, "check_head", lambda self: None)
    with pytest.raises(UserError, match="not finite") as raised:
        likelihoods(model, ROWS, [True] * 5, PLAIN, 64)
    assert raised.value.where == model.folder


def test_self_bleu_of_many_is_over_a_seeded_draw():
    answers = [f"w{n % 3} x{n % 5} y{n % 7} z".split() for n in range(SELF_BLEU_ANSWERS + 1)]
    assert SELF_BLEU_ANSWERS == 100
    assert [self_bleu(answers[:count], 0)[1] for count in (1, 2, 99, 100, 101)] == [1, 2, 99, 100, 100]
    assert self_bleu(answers[:1], 0)[0] is None and self_bleu(answers[:2], 0)[0] is not None
    many = [f"w{n % 3} x{n % 5} y{n % 7} z".split() if n % 2 else [f"a{n}", f"b{n}"] for n in range(300)]
    assert self_bleu(many, 0) == self_bleu(many, 0) != self_bleu(many, 1)
