"""How prompt and answer share a context."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft_ray.generation.budget import CUT, SHORTENED, Fitted, common_opening, cut, fitted, room

PROMPT = list(range(59))


@pytest.mark.parametrize(
    ("wanted", "new_tokens", "change"), [(100, 100, None), (453, 453, None), (454, 453, SHORTENED), (4000, 453, SHORTENED)]
)
def test_the_answer_shrinks_and_the_prompt_stays(wanted, new_tokens, change):
    assert fitted(PROMPT, wanted, 512, opening=2) == Fitted(PROMPT, new_tokens, change)


def test_a_prompt_that_fills_the_context_keeps_its_opening_and_its_end():
    # 20 of context: a quarter for the answer, 3 of opening, the last 12
    assert fitted(PROMPT, 100, 20, opening=3) == Fitted([0, 1, 2, *range(47, 59)], 5, CUT)
    assert fitted(PROMPT, 2, 20, opening=3) == Fitted([0, 1, 2, *range(44, 59)], 2, CUT)
    assert fitted(PROMPT, 100, 59, opening=1).change == CUT
    assert fitted(PROMPT, 100, 60, opening=1) == Fitted(PROMPT, 1, SHORTENED)


@settings(deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(2, 60), st.integers(0, 80))
def test_it_always_fits_and_nothing_is_lost_without_need(length, wanted, context, opening):
    prompt = list(range(length))
    found = fitted(prompt, wanted, context, opening)
    assert found.new_tokens >= 1 and len(found.tokens) >= 1 and len(found.tokens) + found.new_tokens <= context
    assert found.new_tokens <= wanted and found.tokens == sorted(set(found.tokens) & set(prompt))
    if length < context:
        assert found.tokens == prompt and found.new_tokens == min(wanted, context - length)
    else:
        assert found.change == CUT and found.tokens[: min(opening, len(found.tokens))] == prompt[:opening][: len(found.tokens)]


def test_cut_and_room_by_hand():
    assert cut([1, 2, 3, 4], 4, 1) == [1, 2, 3, 4] and cut([1, 2, 3, 4], 2, 1) == [1, 4] and cut([1, 2, 3, 4], 2) == [3, 4]
    assert cut([1, 2, 3, 4], 2, 3) == [1, 2] and cut([1, 2], 0) == []
    assert (room(7, 5, 10), room(10, 5, 10), room(12, 5, 10), room(2, 5, 10)) == (3, 0, -2, 5)
    assert (common_opening([1, 2, 3], [1, 2, 4]), common_opening([1], [1, 2]), common_opening([1], [2])) == (2, 1, 0)


def test_a_context_without_room_is_an_error():
    with pytest.raises(ValueError, match="1 tokens"):
        fitted([1], 1, 1)
