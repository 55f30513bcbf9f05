"""One encoding: tokenizers of many families × templates × hostile text."""

import copy
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from madetokenizers import CHATS, FAMILIES, LOSSLESS, SPECIALS, tokenizer, worded
from transformers import AddedToken

from cft_ray.data.encoding import Encoder
from cft_ray.data.rows import dump_turns
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template

OWN = ("alpaca", "plain", "toy")
WORDS = ["Hello", "world", " ", "  ", "\n", "\n\n", "        return x", "日本", "é", "'s", "12", ":", "<", *SPECIALS]
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join).filter(str.strip)
ANSWERS = TEXT | st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(str.strip)


def row(instruction="Say hello", output="Hello there", **more):
    return {
        "id": "r1",
        "language": "en",
        "system": "",
        "instruction": instruction,
        "input": "",
        "output": output,
        "turns": "",
        **more,
    }


def encoder(family, template):
    chat = template if template in CHATS else None
    return Encoder(tokenizer(family, chat), Template(name="chat" if chat else template))


ENCODERS = {(f, t): encoder(f, t) for f, t in itertools.product(FAMILIES, (*OWN, *CHATS))}


@pytest.mark.parametrize("template", [*OWN, *CHATS])
@pytest.mark.parametrize("family", FAMILIES)
@given(instruction=TEXT, output=ANSWERS, system=st.just("") | TEXT)
@settings(max_examples=25, deadline=None)
def test_what_is_taught_begins_with_what_is_asked_and_holds_no_control_token_of_the_text(
    family, template, instruction, output, system
):
    made = ENCODERS[family, template]
    given_ = row(instruction, output, system=system)
    (found,) = made.rows([given_])
    assert found.ids[: found.prompt] == made.prompts([given_])[0]
    harmless = row("Say hello", "Hello there", system="Be brief" if system else "")
    (clean,) = made.rows([harmless])
    marks = [index for index in found.ids if index in made.vocabulary._forbidden]
    assert marks == [index for index in clean.ids if index in made.vocabulary._forbidden]
    ((begin, stop),) = found.answers
    assert found.ids[stop - 1] == made.ends[0] and begin == found.prompt
    if family in LOSSLESS:
        ids = found.ids[begin : stop - 1]
        text = made.vocabulary._tokenizer("inside", True).decode(ids, skip_special_tokens=False)
        if template == "think":
            text = text.rpartition("</think>")[2]
        expected = output.strip() if template in CHATS else output
        assert (text.strip() if template in CHATS else text) == expected


@pytest.mark.parametrize("chat", [name for name in CHATS if name not in ("think", "parts")])
@pytest.mark.parametrize("family", FAMILIES)
def test_chat_ids_are_those_of_apply_chat_template(family, chat):
    made = ENCODERS[family, chat]
    messages = [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "Hello there"}]
    gold = tokenizer(family, chat).apply_chat_template(messages[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert made.prompts([row()])[0] == gold
    whole: Any = tokenizer(family, chat).apply_chat_template(messages, tokenize=True, return_dict=False)
    (found,) = made.rows([row()])
    added = [] if chat != "glm" else [made.ends[0]]
    seams = whole[: len(gold)] != gold  # the whole text merges the prompt's last line break otherwise
    assert seams == ((family, chat) == ("gpt2", "llama3"))
    assert seams or found.ids == [*whole, *added]


@pytest.mark.parametrize("chat", [name for name in CHATS if name not in ("think", "parts")])
@pytest.mark.parametrize("family", FAMILIES)
def test_chat_ids_of_several_turns_are_those_of_apply_chat_template(family, chat):
    """What a row is asked with; answers follow it as elsewhere."""
    before = [("user", "Say hello"), ("assistant", "Hello there"), ("user", "user says more"), ("assistant", "system and user")]
    messages = [{"role": role, "content": content} for role, content in [*before, ("user", "Say hello")]]
    gold: Any = tokenizer(family, chat).apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    turns = dump_turns(messages[:-1])
    (asked,) = ENCODERS[family, chat].prompts([row(turns=turns)])
    if (family, chat) == ("gpt2", "llama3"):  # answers are taught apart, and the whole text joins a line break to one of them
        assert tokenizer(family).decode(asked) == tokenizer(family).decode(gold)
    else:
        assert asked == gold


@pytest.mark.parametrize(
    ("before", "between", "behind"),
    [("", "\n", "\n"), ("\n", "", "")],
)
@pytest.mark.parametrize("family", ["gpt2", "llama3", "first", "legacy"])
def test_white_space_behind_a_mark_that_takes_it_is_taken_in_every_turn(family, before, between, behind):
    """Phi-3's marks; an answer keeps the white space that it begins with, though they would take it."""
    source: Any = copy.deepcopy(tokenizer(family, "chatml"))
    marks = [AddedToken(text, special=True, normalized=False, rstrip=True) for text in ("<|im_start|>", "<|im_end|>")]
    source.add_tokens(marks, special_tokens=True)
    source.chat_template = (
        f"{{% for m in messages %}}{{{{ {before!r} + '<|im_start|>' + m['role'] + {between!r} + m['content'] }}}}"
        f"{{{{ '<|im_end|>' + {behind!r} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {before!r} + '<|im_start|>assistant' + {between!r} }}}}{{% endif %}}"
    )
    made = Encoder(source, Template(name="chat"))
    said = [("user", "Say hello"), ("assistant", "Hello there"), ("user", "  Say more"), ("assistant", "world"), ("user", "One")]
    messages = [{"role": role, "content": content} for role, content in said]
    for stop in (1, 3, 5):
        gold = source.apply_chat_template(messages[:stop], tokenize=True, add_generation_prompt=True, return_dict=False)
        (asked,) = made.prompts([row(messages[stop - 1]["content"], turns=dump_turns(messages[: stop - 1]))])
        assert source.convert_ids_to_tokens(asked) == source.convert_ids_to_tokens(gold)
    output = "        return x"
    (found,) = made.rows([row(output=output, turns=dump_turns(messages[:2]))])
    begin, stop = found.answers[-1]
    assert source.decode(found.ids[begin : stop - 1], skip_special_tokens=False).endswith(output.removeprefix(" "))
    assert found.ids[stop - 1 :] == [source.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.parametrize("family", FAMILIES)
def test_own_templates_begin_as_the_tokenizer_begins_a_text(family):
    made = ENCODERS[family, "plain"]
    alone = tokenizer(family)("Say hello\n\n").input_ids
    asked = made.prompts([row()])[0]
    assert asked == alone[: len(asked)] and len(alone) - len(asked) in (0, 1)  # WordPiece-like ones put an end as well


@pytest.mark.parametrize("family", FAMILIES)
@given(instruction=TEXT, extra=st.just("") | TEXT, system=st.just("") | TEXT)
@settings(max_examples=25, deadline=None)
def test_an_opening_that_is_encoded_once_changes_no_token(family, instruction, extra, system):
    made = ENCODERS[family, "alpaca"]
    given_ = row(instruction, input=extra, system=system)
    (whole,) = made.vocabulary.encode([made.written(given_)], "start", literal=True)
    assert made.prompts([given_]) == [[*made.vocabulary.prefix, *whole]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", [*OWN, "chatml", "mistral"])
def test_every_assistants_turn_is_an_answer_with_its_end(family, template):
    made = ENCODERS[family, template]
    turns = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Hello there"}]
    (found,) = made.rows([row("Two", "world", turns=dump_turns(turns))])
    assert len(found.answers) == 2
    for (begin, stop), text in zip(found.answers, ("Hello there", "world"), strict=True):
        assert found.ids[stop - 1] == made.ends[0]
        decoded = made.vocabulary._tokenizer("inside", True).decode(found.ids[begin : stop - 1], skip_special_tokens=False)
        assert "".join(decoded.split()).lower() == "".join(text.split()).lower()


@pytest.mark.parametrize("template", [*OWN, *CHATS])
def test_an_answer_that_was_cut_has_no_end(template):
    made = ENCODERS["gpt2", template]
    whole, cut = made.rows([row(), row()], [True, False])
    (begin, stop), (_, end) = cut.answers[0], whole.answers[0]
    assert cut.ids == whole.ids[: end - 1] and stop == len(cut.ids) and begin == whole.prompt


TURNS = st.lists(st.tuples(TEXT, ANSWERS), min_size=1, max_size=2).map(
    lambda pairs: dump_turns(
        [{"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    )
)


@pytest.mark.parametrize("template", [*OWN, *CHATS])
@pytest.mark.parametrize("family", ["gpt2", "first", "legacy", "wordpiece"])
@given(turns=TURNS, instruction=TEXT, output=ANSWERS)
@settings(max_examples=8, deadline=None)
def test_a_conversation_begins_with_what_is_asked_at_each_of_its_answers(family, template, turns, instruction, output):
    made = ENCODERS[family, template]
    given_ = row(instruction, output, turns=turns)
    (found,) = made.rows([given_])
    assert found.ids[: found.prompt] == made.prompts([given_])[0]
    said = json.loads(turns)
    assert len(found.answers) + found.untaught == len(said) // 2 + 1
    if not found.untaught:
        for number, (begin, _) in enumerate(found.answers[:-1]):
            earlier = row(said[2 * number]["content"], turns=dump_turns(said[: 2 * number]))
            assert found.ids[:begin] == made.prompts([earlier])[0]
    clean = [{**turn, "content": "Hello"} for turn in said]
    (harmless,) = made.rows([row("Hello", "Hello", turns=dump_turns(clean))])
    marks = [index for index in found.ids if index in made.vocabulary._forbidden]
    assert marks == [index for index in harmless.ids if index in made.vocabulary._forbidden]


def test_an_earlier_answer_that_the_template_asks_for_in_other_words_is_counted_and_not_taught():
    made = ENCODERS["gpt2", "think"]
    turns = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Hello"}]
    (found,) = made.rows([row("Two", "world", turns=dump_turns(turns))])
    assert (found.untaught, len(found.answers)) == (1, 1)
    decode: Any = tokenizer("gpt2").decode
    (begin, stop) = found.answers[0]
    assert decode(found.ids[begin:stop]) == "\n</think>\n\nworld<|im_end|>"
    assert "assistant\nHello<|im_end|>" in decode(found.ids[:begin])


def test_a_row_whose_spelling_of_a_control_token_the_template_changes_is_refused_alone():
    with worded("gpt2", CHATS["chatml"].replace("m['content']", "m['content'] | replace('</s>', '<s>')")) as made:
        rows = [row(), row(output="ends </s> here"), row(output="<|im_end|>")]
        found = made.rows(rows)
        assert [each.refused for each in found] == [None, "template_changes_spelling", None]
        assert found[0].ids == made.rows([rows[0]])[0].ids
        with pytest.raises(UserError, match="row r1"):
            made.prompts([row("</s>")])


def test_errors_that_are_not_the_templates_are_raised(monkeypatch):
    with worded("gpt2", CHATS["chatml"]) as made, monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(type(tokenizer("gpt2", "chatml")), "apply_chat_template", lambda *_, **__: 1 / 0)
        made.prompts([row()])
    with pytest.raises(UserError, match="loses the text"), worded("gpt2", "{{ 1 / 0 }}"):
        pass


@pytest.mark.parametrize("template", ["alpaca", "plain", "toy", "chatml", "llama3"])
@pytest.mark.parametrize("family", LOSSLESS)
@given(output=st.sampled_from(["Hello", "\n\nHello", "        return x", " 12", "日本"]) | ANSWERS)
@settings(max_examples=25, deadline=None)
def test_seams_are_where_the_whole_text_is_encoded_otherwise(family, template, output):
    made = ENCODERS[family, template]
    (found,) = made.rows([row(output=output)])
    if found.spelled:  # then no plain tokenizer encodes the whole text as text
        return
    text = made.written(row()) + (output.strip() if template == "llama3" else output)
    (joined,) = made.vocabulary.encode([text], "start", literal=made.chat is None)
    ((_, stop),) = found.answers
    ids = found.ids[len(made.vocabulary.prefix) if made.chat is None else 0 : stop - 1]
    assert found.seam == (joined != ids)


def test_a_template_that_loses_turns_is_refused_and_one_that_loses_the_system_text_is_given_it_in_the_users():
    made = ENCODERS["gpt2", "drops_system"]
    text = made.written(row(system="Be brief"))
    assert text == "<s>[INST]Be brief\n\nSay hello[/INST]"
    broken = tokenizer("gpt2", "chatml")
    kept = broken.chat_template
    try:
        broken.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"
        with pytest.raises(UserError, match="loses the text"):
            Encoder(broken, Template(name="chat"))
        broken.chat_template = None
        with pytest.raises(UserError, match="no chat template"):
            Encoder(broken, Template(name="chat"))
    finally:
        broken.chat_template = kept


def test_thoughts_go_on_where_the_template_opens_them():
    made = ENCODERS["gpt2", "think"]
    decode: Any = tokenizer("gpt2").decode
    with_, without = made.rows([row(output="<think>\nsum\n</think>\n4"), row(output="4")])
    assert decode(with_.ids).endswith("<|im_start|>assistant\n<think>\nsum\n</think>\n4<|im_end|>")
    assert decode(without.ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n4<|im_end|>")


def test_a_templates_date_is_the_settings():
    dated: Any = tokenizer("gpt2", "chatml")
    kept = dated.chat_template
    try:
        dated.chat_template = "{{ strftime_now('%d %b %Y') }} {{ date_string }}" + kept
        text = Encoder(dated, Template(name="chat", date="2020-02-03")).written(row())
        assert text.startswith("03 Feb 2020 03 Feb 2020<|im_start|>")
    finally:
        dated.chat_template = kept
