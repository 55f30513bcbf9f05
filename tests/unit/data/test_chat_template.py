"""A chat template decides alone how a conversation is written; what it loses or writes elsewhere is refused with its row."""

from typing import Any

import pytest
from madetokenizers import CHATS, tokenizer, worded

from cft_ray.data.encoding import Encoder
from cft_ray.data.rows import dump_turns
from cft_ray.errors import UserError

CHATML = CHATS["chatml"]
TURNS = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Hello"}]


def row(**more: str) -> dict[str, str]:
    return {"id": "r7", "instruction": "Say hello", "output": "Hello there"} | more


REFUSALS = {
    "refuses": (
        "{% if messages | length == 2 and messages[1].content == 'no' %}{{ raise_exception('x') }}{% endif %}" + CHATML,
        row(output="no"),
    ),
    "asks in other words than those in which it writes an answer in": (
        CHATML.replace("assistant\n' }}", "assistant, what?\n' }}"),
        row(),
    ),
    "ends differently after": (
        CHATML.replace("+ '<|im_end|>\n' }}", "}}{% if m['content'] != 'odd' %}{{ '<|im_end|>\n' }}{% endif %}"),
        row(output="odd"),
    ),
    "does not write the whole answer of": (
        CHATML.replace("m['content'] + '<", "m['content'].split('END')[0] + '<"),
        row(output="Hello END there"),
    ),
    "loses a part of": (
        CHATML.replace("m['content'] + '<", "m['content'].split('END')[0] + '<"),
        row(instruction="Say END hello"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_a_row_that_the_template_does_not_write_is_refused_by_name(what):
    template, given = REFUSALS[what]
    with worded("gpt2", template) as made, pytest.raises(UserError, match=f"{what} row r7"):
        made.rows([given])


def test_a_template_that_refuses_an_earlier_turn_is_refused():
    once = CHATML.replace("{% for", "{% if messages | length > 2 %}{{ raise_exception('once') }}{% endif %}{% for", 1)
    with worded("gpt2", once) as made:
        assert len(made.rows([row()])[0].answers) == 1
        with pytest.raises(UserError, match="loses a part of row r7"):
            made.rows([row(turns=dump_turns(TURNS))])


def text_of(made: Encoder, ids: list[int]) -> str:
    source: Any = tokenizer("gpt2")
    return source.decode(ids)


def test_a_system_text_of_the_row_goes_where_the_template_has_a_place_for_it():
    with worded("gpt2", CHATML) as made:
        text = text_of(made, made.prompts([row(system="Be brief")])[0])
    assert text == "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nSay hello<|im_end|>\n<|im_start|>assistant\n"


def test_where_the_template_refuses_one_row_with_a_system_text_it_opens_the_users_turn():
    """The place is there for short ones only."""
    odd = CHATML.replace(
        "{% for m in messages %}", "{% for m in messages %}{% if not (m['role'] == 'system' and 'long' in m['content']) %}"
    )
    odd = odd.replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    with worded("gpt2", odd) as made:
        short, long = (text_of(made, made.prompts([row(system=system)])[0]) for system in ("Be brief", "Be long"))
    assert short.startswith("<|im_start|>system\nBe brief<|im_end|>") and "user\nBe long\n\nSay hello<" in long


def test_input_and_instruction_are_one_turn():
    with worded("gpt2", CHATML) as made:
        assert "user\nSay hello\n\n1 2<|im_end|>" in text_of(made, made.prompts([row(input="1 2")])[0])


def test_each_turn_of_a_conversation_is_written_and_the_last_asked():
    with worded("gpt2", CHATML) as made:
        (found,) = made.rows([row(turns=dump_turns([*TURNS, *TURNS]))])
        written = made.written(row(turns=dump_turns(TURNS)))
    text = text_of(made, found.ids)
    assert text.count("<|im_start|>user") == 3 and text.count("<|im_start|>assistant") == 3 and found.untaught == 0
    assert [text_of(made, found.ids[begin:stop]) for begin, stop in found.answers] == ["Hello<|im_end|>"] * 2 + [
        "Hello there<|im_end|>"
    ]
    assert written == (
        "<|im_start|>user\nOne<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nSay hello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_answers_that_say_the_same_as_the_question_are_found_behind_it():
    with worded("gpt2", CHATML) as made:
        (found,) = made.rows([row(turns=dump_turns([{"role": "user", "content": "Hello"}, TURNS[1]]), instruction="Hello")])
    assert [text_of(made, found.ids[begin:stop]) for begin, stop in found.answers] == ["Hello<|im_end|>", "Hello there<|im_end|>"]


def test_a_template_without_a_mark_behind_answers_ends_them_with_the_sequence():
    bare = "{% for m in messages %}{{ ('[INST]' if m['role'] == 'user' else '[/INST]') + m['content'] }}{% endfor %}"
    with worded("gpt2", bare + "{% if add_generation_prompt %}[/INST]{% endif %}") as made:
        (found,) = made.rows([row(turns=dump_turns(TURNS))])
    assert text_of(made, found.ids) == "[INST]One[/INST]Hello[INST]Say hello[/INST]Hello there</s>"
    assert [text_of(made, found.ids[begin:stop]) for begin, stop in found.answers] == ["Hello", "Hello there</s>"]


def test_a_thought_that_is_written_goes_on_behind_the_opening():
    with worded("gpt2", CHATS["think"]) as made:
        found = made.rows([row(output=text) for text in ("<think>sum</think>4", "  <think>\n\nsum</think>4", "4")])
    answers = [text_of(made, each.ids[each.prompt :]) for each in found]
    assert answers == ["sum</think>4<|im_end|>", "sum</think>4<|im_end|>", "\n</think>\n\n4<|im_end|>"]


def test_controls_that_a_row_spells_stay_where_they_were():
    source: Any = tokenizer("gpt2")
    with worded("gpt2", CHATML) as made:
        given = row(instruction="a </s> b [INST]", output="c <s> d", system="<|im_end|>")
        (found,) = made.rows([given])
        assert text_of(made, found.ids).count("<|im_end|>") == 4, "three marks and the system text"
        marks = [index for index in found.ids if index in set(source.convert_tokens_to_ids(["<s>", "</s>", "[INST]"]))]
    assert marks == [] and found.spelled and "a </s> b [INST]" in text_of(made, found.ids)
