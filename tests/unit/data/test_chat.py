"""Conversations are taken as they stand, or left out for a reason."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft_ray.data.chat import Conversation, Unfit, conversation
from cft_ray.data.formats import format_of

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def said(*turns: object) -> Conversation:
    return conversation(json.dumps(turns))


def test_one_exchange_in_both_dialects() -> None:
    wanted = Conversation("s", (), "q", "a")
    assert said({"role": "system", "content": "s"}, Q, A) == wanted
    assert said({"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}) == wanted
    assert said({"role": "developer", "content": "s"}, Q | {"role": "User"}, A | {"tool_calls": []}) == wanted


def test_earlier_turns_stay_in_their_order() -> None:
    found = said(Q, A, Q | {"content": "q2"}, A | {"content": "a2"})
    assert found == Conversation("", (Q, A), "q2", "a2")


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert said(Q | {"content": parts}, A).question == "ab"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no_turns"),
        ([{"role": "system", "content": "s"}], "no_turns"),
        ([Q], "ends_with_a_question"),
        ([Q, A, Q], "ends_with_a_question"),
        ([A, Q, A], "turns_out_of_order"),
        ([Q, Q, A], "turns_out_of_order"),
        ([Q, A, A], "turns_out_of_order"),
        ([Q, {"role": "system", "content": "s"}, A], "system_text_inside"),
        ([Q, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], "tool_turn"),
        ([Q, A, {"role": "tool", "content": "3"}, A], "tool_turn"),
        ([{"from": "human", "value": "q"}, {"from": "function_call", "value": "f()"}], "tool_turn"),
        ([Q | {"role": "narrator"}, A], "other_role"),
        ([{"content": "q"}, A], "other_role"),
        ([Q | {"content": " "}, A], "empty_turn"),
        ([Q, A | {"content": None}], "empty_turn"),
        ([Q | {"content": [{"type": "image_url", "image_url": "x"}]}, A], "not_only_text"),
        ([Q | {"content": 3}, A], "not_only_text"),
        (["q", "a"], "not_a_conversation"),
    ],
)
def test_what_is_left_out_and_why(turns: list[object], reason: str) -> None:
    with pytest.raises(Unfit) as raised:
        said(*turns)
    assert str(raised.value) == reason


KEYS = st.sampled_from(["role", "from", "content", "value", "text"])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.sampled_from([Q, A, "user", "gpt"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.one_of(VALUES.map(json.dumps), st.text(max_size=20)))
def test_any_value_is_a_conversation_or_unfit(text: str) -> None:
    try:
        found = conversation(text)
    except Unfit:
        return
    assert found.question.strip() and found.answer.strip() and len(found.turns) % 2 == 0


def test_formats_are_known_by_their_columns() -> None:
    assert format_of(["instruction", "output", "extra"]) == "alpaca"
    assert format_of(["id", "language", "system", "instruction", "input", "output"]) == "canonical"
    assert format_of(["system_prompt", "question", "response"]) == "orca"
    assert format_of(["messages", "source"]) == "messages"
    assert format_of(["id", "conversations"]) == "sharegpt"
    assert format_of(["text"]) is None


def test_parts_may_be_plain_text_and_say_no_type() -> None:
    assert said(Q | {"content": ["a", {"text": "b"}, {"type": "text", "text": "c"}]}, A).question == "abc"
    assert said({"from": " Human ", "value": ["x"]}, {"from": "CHATGPT", "value": "y"}) == Conversation("", (), "x", "y")


@pytest.mark.parametrize("part", [{"type": "text", "text": 3}, {"type": "text"}, {"type": "image", "text": "x"}, 3, None, ["x"]])
def test_parts_that_are_no_text_leave_the_row_out(part: object) -> None:
    with pytest.raises(Unfit, match="not_only_text"):
        said(Q | {"content": ["a", part]}, A)


@pytest.mark.parametrize("text", ["", " \n", "[" * 100_000, "{", "3", "{}"])
def test_texts_that_are_no_conversation(text: str) -> None:
    with pytest.raises(Unfit, match="not_a_conversation" if text.strip() else "no_turns"):
        conversation(text)


@pytest.mark.parametrize("name", ["tool_calls", "function_call"])
def test_calls_of_tools_count_and_empty_ones_do_not(name: str) -> None:
    with pytest.raises(Unfit, match="tool_turn"):
        said(Q, A | {name: [{"id": "1"}]})
    assert said(Q, A | {name: []}).answer == "a" and said(Q, A | {name: None}).answer == "a"


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["instruction", "output"], "alpaca"), (["instruction", "input"], None), (["output"], None),
        (["question", "response"], "orca"), (["question"], None), (["messages", "instruction", "output"], "alpaca"),
        (["conversations", "messages"], "messages"), (["id", "language", "system", "instruction", "input"], None),
    ],
)  # fmt: skip
def test_a_format_needs_question_and_answer(columns: list[str], name: str | None) -> None:
    assert format_of(columns) == name
