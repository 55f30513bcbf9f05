"""The exported chat template asks in the tokens that were taught."""

import copy
import itertools
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from madetokenizers import CHATS, FAMILIES, LOSSLESS, tokenizer
from transformers import AddedToken, AutoTokenizer

from cft_ray.data.chat_form import chat_form
from cft_ray.data.encoding import Encoder
from cft_ray.grid.settings import Template

OWN = ("alpaca", "plain", "toy")
WORDS = ["Hello", "world", " ", "  ", "\n", "\n\n", "        return x", "日本", "é", "'s", "12", ":", "{{ 1 }}", "{% if %}"]
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join).filter(str.strip)


def asked(served: Any, instruction: str, system: str = "") -> list[int]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": instruction})
    return served.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(family, template) -> encoder and tokenizer as read from the exported folder."""
    made = {}
    for family, template in itertools.product(FAMILIES, (*OWN, "drops_system", "parts", "chatml")):
        source = tokenizer(family, template if template in CHATS else None)
        encoder = Encoder(source, Template.model_validate({"name": "chat" if template in CHATS else template}))
        form = chat_form(source, encoder)
        assert form.faithful and form.ends == encoder.ends
        folder = tmp_path_factory.mktemp(f"{family}-{template}")
        form.tokenizer.save_pretrained(folder)
        made[family, template] = encoder, AutoTokenizer.from_pretrained(folder)
    return lambda family, template: made[family, template]


@pytest.mark.parametrize("template", [*OWN, "drops_system", "parts", "chatml"])
@pytest.mark.parametrize("family", FAMILIES)
@given(instruction=TEXT, system=st.just("") | TEXT)
@settings(max_examples=15, deadline=None)
def test_a_chat_server_asks_with_the_taught_tokens(exported, family, template, instruction, system):
    encoder, served = exported(family, template)
    ids = asked(served, instruction, system)
    assert ids == encoder.prompts([{"system": system, "instruction": instruction}])[0]
    begin = served.bos_token_id
    written = "bos_token" in CHATS[template] if template in CHATS else begin in encoder.vocabulary.prefix
    assert ids.count(begin) == written


@pytest.mark.parametrize("template", OWN)
@pytest.mark.parametrize("family", LOSSLESS)
def test_answers_and_turns_are_written_as_they_are_taught(exported, family, template):
    encoder, served = exported(family, template)
    said = [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "Hello"}]
    text = served.apply_chat_template(said, tokenize=False)
    (row,) = encoder.rows([{"instruction": "Say hello", "output": "Hello"}])
    assert text.endswith("Hello</s>")
    assert row.seam or served(text, add_special_tokens=False).input_ids == row.ids
    with pytest.raises(Exception, match="take turns"):
        served.apply_chat_template(said[1:], tokenize=False)


@contextmanager
def worded(template: str | None):
    changed: Any = tokenizer("gpt2", "chatml")
    kept = changed.chat_template
    try:
        changed.chat_template = template
        yield changed
    finally:
        changed.chat_template = kept


def test_the_grids_system_text_and_date_are_in_the_template():
    for name in OWN:
        source = tokenizer("gpt2", None)
        form = chat_form(source, Encoder(source, Template(name=name, system='Say "hi" 😀\n')))
        text = str(form.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False))
        assert text.startswith('<s>Say "hi" 😀\n')
    dated = "{{ strftime_now('%d %b %Y') }}|{{ date_string }}|" + CHATS["chatml"]
    with worded(dated) as source:
        template = Template(name="chat", system="Brief.", date="2020-02-03")
        form = chat_form(source, Encoder(source, template))
        text = str(form.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False))
        assert form.faithful
        assert text.startswith("03 Feb 2020|03 Feb 2020|<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nx")
        again = chat_form(form.tokenizer, Encoder(form.tokenizer, template))
        assert again.tokenizer.chat_template == form.tokenizer.chat_template
        assert source.chat_template == dated


def test_what_plain_transformers_cannot_ask_is_known():
    """A beginning that takes the white space behind it away, which the tokenizer itself does not when it puts it there."""
    source: Any = copy.deepcopy(tokenizer("gpt2", None))
    source.add_tokens([AddedToken("<s>", special=True, normalized=False, rstrip=True)])
    assert not chat_form(source, Encoder(source, Template(name="plain"))).faithful
    assert chat_form(source, Encoder(source, Template(name="alpaca"))).faithful
