"""The harness' results of every form as rows, local judges' tokens, and prompts that do not fit: worked out by hand."""

from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from madetokenizers import tokenizer

from cft_ray.errors import UserError
from cft_ray.evaluation import rows
from cft_ray.evaluation.alpaca_eval import local
from cft_ray.evaluation.punkt import needs_punkt
from cft_ray.evaluation.templated import Templated
from cft_ray.generation.budget import CUT, SHORTENED
from cft_ray.grid.settings import Template


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (True, 1.0), (2, 2.0), (0.5, 0.5), (np.float32(0.25), 0.25), (np.int64(3), 3.0), ([True, False, True, True], 0.75),
        ([1, [0, 1]], 0.75), ([], None), ("0.5", None), (None, None), ([1, None], None), (np.str_("x"), None), ({"a": 1}, None),
    ],
    ids=str,
)  # fmt: skip
def test_a_metric_of_one_item_as_a_number(value, number):
    assert rows._number(value) == number


def test_metrics_by_their_filters():
    flat = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "em,strict": 1,
        "em_stderr,strict": "N/A",
        "words,none": "many",
        "sample_len": 3,
    }
    assert rows._metrics(flat) == {"acc": (0.5, 0.1), "em,strict": (1.0, None)}


@pytest.mark.parametrize(
    ("docs", "key"),
    [
        ([{"id": 1}, {"id": 0}], "id"),
        ([{"id": 1, "key": 2}, {"key": 3}], "key"),
        ([{"ind": 5}], "ind"),
        ([{"x": 1}], None),
        ([], None),
    ],
)
def test_what_names_the_items(docs, key):
    assert rows._identity(docs) == key


def choice(target: Any, worth: list[float]) -> dict[str, Any]:
    return {
        "doc_id": 0, "doc": {}, "filter": "none", "target": target, "arguments": [("q", f" {name} ") for name in "abc"],
        "filtered_resps": [(value, False) for value in worth], "metrics": [],
    }  # fmt: skip


@pytest.mark.parametrize(("target", "said"), [(0, "a"), (2, "c"), (3, "3"), (-1, "-1"), ("b", "b")])
def test_the_target_of_a_choice_is_its_text(target, said):
    (row,) = rows._samples([choice(target, [-3.0, -1.0, -2.0])])
    assert row["target"] == said and row["response"] == "b" and row["item"] == "0" and row["cluster"] is None


def test_items_behind_a_group_are_those_of_the_tasks_below_it():
    results = {
        "n-samples": {"a": {"effective": 2}, "b": {"effective": 3}, "c": {"effective": 5}},
        "group_subtasks": {"all": ["left", "c"], "left": ["a", "b"]},
    }
    assert [rows._answered(results, name, ["a"]) for name in ("all", "left", "c")] == [10, 5, 5]
    assert rows._answered({"n-samples": {"a": {"effective": 2}, "b": {"effective": 3}}}, "unknown", ["a", "b"]) == 5


def test_what_an_item_shares_with_others():
    assert rows.cluster({"subject": "law", "context": "x"}) == "law"
    same, other = rows.cluster({"context": "x"}), rows.cluster({"context": "y"})
    assert same is not None and len(same) == 16 and same != other and rows.cluster({"context": "x", "source_id": 4}) == same
    assert rows.cluster({"source_id": 4}) == "4" and rows.cluster({"source_id": ""}) is None and rows.cluster({}) is None


def test_the_tokens_that_spell_a_judges_word():
    class Tokens:
        words = ("m", " m", "M", "x", "\nM ", "mm")

        def __len__(self) -> int:
            return len(self.words)

        def batch_decode(self, ids: list[list[int]]) -> list[str]:
            return [self.words[index] for (index,) in ids]

    assert local._spelt(Tokens(), ("m", "M")) == {"m": [0, 1], "M": [2, 4]} and local._spelt(Tokens(), ()) == {}
    with pytest.raises(UserError, match="the judge has no token 'y'"):
        local._spelt(Tokens(), ("m", "y"))


@pytest.mark.parametrize(
    ("tasks", "needed"), [(["ifeval"], True), (["mmlu", "leaderboard_ifeval"], True), (["mmlu"], False), ([], False)]
)
def test_who_needs_sentences(tasks, needed):
    assert needs_punkt(tasks) is needed


class Model(Templated):
    """Scores each token at -1."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.tokenizer, self.max_length, self.prefix_token_id = tokenizer("gpt2"), length, 1
        self.windows: list[tuple[list[int], list[int]]] = []

    def _loglikelihood_tokens(self, requests: Any) -> list[tuple[float, bool]]:
        self.windows += [(context, continuation) for _, context, continuation in requests]
        return [(-float(len(continuation)), False) for _, continuation in ((c, d) for _, c, d in requests)]


def test_what_does_not_fit_is_changed_and_counted_until_asked():
    model = Model(20)
    assert model.fit(list(range(5)), 10).change is None and model.take_changes() == {}
    assert model.fit(list(range(15)), 10).new_tokens == 5 and len(model.fit(list(range(30)), 10).tokens) == 15
    assert model.take_changes() == {SHORTENED: 1, CUT: 1} and model.take_changes() == {}


def test_a_context_is_cut_where_its_continuation_needs_the_room():
    model = Model(20)
    texts = ("", "")
    whole = (texts, [1, 2, 3], [4, 5])
    assert model.fit_scored([whole], 5) == [whole] and model.take_changes() == {}
    # What opens every prompt, the beginning of the sequence, stays.
    assert model.fit_scored([whole], 4) == [(texts, [1, 3], [4, 5])] and model.fit_scored([whole], 3) == [(texts, [1], [4, 5])]
    assert model.take_changes() == {CUT: 2}
    with pytest.raises(UserError, match="2 tokens are to be scored, and the model reads 2"):
        model.fit_scored([whole], 2)


def test_long_texts_are_scored_in_windows_each_token_once():
    model = Model(12)
    texts = ["def f(x):\n        return x\n    return y\n" * 4, "Hello"]
    totals = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(texts)])
    counts = [len(tokenizer("gpt2")(text, add_special_tokens=False).input_ids) for text in texts]
    assert totals == [-float(count) for count in counts] and counts[0] > 12
    assert all(len(context) + len(continuation) <= 12 for context, continuation in model.windows)
    joined = [token for _, continuation in model.windows[:-1] for token in continuation]
    assert joined == tokenizer("gpt2")(texts[0], add_special_tokens=False).input_ids


def test_a_conversation_becomes_the_prompt_of_the_template():
    model = Model(50)
    model.template, model.canonical = Template(name="plain"), True
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "one\n\ntwo\n\nthree"}
    assert model.apply_chat_template([user]) == "one\n\ntwo\n\nthree\n\n"
    begun = model.apply_chat_template([user, {"role": "assistant", "content": "It is"}], add_generation_prompt=False)
    assert begun == "one\n\ntwo\n\nthree\n\nIt is" and "Be kind." in model.apply_chat_template([system, user])
    encoder = model.encoder
    assert model.encoder is encoder and encoder.template == Template(name="plain")
    model.template = Template(name="toy")
    assert model.apply_chat_template([user]).endswith(" =") and model.encoder.template == Template(name="toy")
    with pytest.raises(UserError, match="asks in 3 turns"):
        model.apply_chat_template([user, {"role": "assistant", "content": "x"}, user])
