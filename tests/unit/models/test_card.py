"""What a trained model's card says, read as a Markdown reader reads it: headings, code and notes."""

import itertools
from typing import Any, NamedTuple

import pytest
from madetokenizers import CHATS, tokenizer, worded
from markdown_it import MarkdownIt
from transformers import AddedToken, AutoTokenizer

from cft_ray.data.chat_form import ChatForm, chat_form
from cft_ray.data.encoding import Encoder
from cft_ray.grid.settings import Template
from cft_ray.models.card import card

ASKED = "Name three colours."


class Read(NamedTuple):
    """A card's front matter, heading, blocks of code, and words and code of its notes."""

    front: str
    title: str
    blocks: list[str]
    notes: list[str]
    codes: list[str]


def read(text: str) -> Read:
    _, front, body = text.split("---\n", 2)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    inline = {kind: [after for token, after in itertools.pairwise(tokens) if token.type == kind] for kind in _OPEN}
    shown = [child for token in tokens if token.type == "inline" for child in token.children or ()]
    assert {child.type for child in shown} <= {"text", "text_special", "code_inline", "strong_open", "strong_close", "softbreak"}
    assert not any(token.type == "html_block" for token in tokens)
    (title, _) = inline["heading_open"]
    return Read(
        front,
        "".join(child.content for child in title.children or ()),
        [token.content.removesuffix("\n") for token in tokens if token.type == "fence"],
        [token.content for token in inline["paragraph_open"]],
        [child.content for child in shown if child.type == "code_inline"],
    )


_OPEN = ("heading_open", "paragraph_open")


def made(family: str, template: Template, chat: str | None = None, title: str = "a training") -> tuple[Read, ChatForm, Encoder]:
    source: Any = tokenizer(family, chat)
    encoder = Encoder(source, template)
    form = chat_form(source, encoder)
    return read(card(form, encoder, title)), form, encoder


@pytest.mark.parametrize("template", ["alpaca", "plain", "toy", *CHATS])
def test_the_text_that_is_shown_becomes_the_tokens_that_were_taught(template):
    """By whoever tokenises it as the card says, which is what chat servers do."""
    chat = template if template in CHATS else None
    found, form, encoder = made("gpt2", Template.model_validate({"name": "chat" if chat else template}), chat)
    served: Any = form.tokenizer
    assert served(found.blocks[1], add_special_tokens=False).input_ids == encoder.prompts([{"instruction": ASKED}])[0]
    named: dict[str, Any] = {}
    exec(found.blocks[0], {"tokenizer": served}, named)  # the card's own lines
    assert named["messages"] == [{"role": "user", "content": ASKED}]
    assert found.title == "a training" and "library_name: transformers\n" in found.front
    assert "Plain transformers does not" not in " ".join(found.notes)


@pytest.mark.parametrize(
    ("family", "chat", "ends"),
    [("gpt2", "llama3", ["<|im_end|>", "</s>"]), ("first", "mistral", ["</s>"]), ("first", None, ["</s>"])],
)
def test_the_ends_are_those_that_are_taught(family, chat, ends):
    found, form, encoder = made(family, Template.model_validate({"name": "chat" if chat else "alpaca"}), chat)
    ids: Any = tokenizer(family).convert_tokens_to_ids(ends)
    assert list(form.ends) == ids == list(encoder.ends)
    said = " and ".join(f"`{end}` ({index})" for end, index in zip(ends, ids, strict=True))
    assert any(note.startswith(f"Answers end with {said}") for note in found.notes)


def notes(found: Read, *words: str) -> list[bool]:
    return [any(word in note for note in found.notes) for word in words]


def test_where_the_words_come_from_and_what_is_put_in_them():
    own, *_ = made("gpt2", Template(name="toy"))
    assert notes(own, "the template `toy` of the grid", "its tokenizer came with", "no system text", "no place", "date") == [
        *(True, False, False, False, False)
    ]
    kept, *_ = made("gpt2", Template(name="chat", system="Be brief."), "drops_system")
    assert notes(kept, "of the grid", "its tokenizer came with", "`'Be brief.'`", "opens the first question", "date") == [
        *(False, True, True, True, False)
    ]
    assert "Be brief.\n\n" + ASKED in kept.blocks[1]


def test_a_date_is_said_where_one_is_written():
    with worded("gpt2", "{{ strftime_now('%Y') }}" + CHATS["chatml"]) as encoder:
        source: Any = encoder.chat and encoder.chat.tokenizer
        dated = Encoder(source, Template(name="chat", date="2020-02-03"))
        found = read(card(chat_form(source, dated), dated, "t"))
    assert found.blocks[1].startswith("2020<|im_start|>")
    assert notes(found, "it writes 2020-02-03, as in training") == [True]


def test_a_template_that_plain_transformers_cannot_follow_is_said():
    import copy

    source: Any = copy.deepcopy(tokenizer("gpt2", None))
    source.add_tokens([AddedToken("<s>", special=True, normalized=False, rstrip=True)])
    encoder = Encoder(source, Template(name="plain"))
    assert notes(read(card(chat_form(source, encoder), encoder, "t")), "does not make the tokens of training") == [True]


@pytest.mark.parametrize(
    "hostile",
    [
        "`code` and ``more``",
        "```\n# no heading\n````",
        "[a](https://example.org) ![b](c)",
        "<script>alert(1)</script> &amp; <b>",
        "**bold** _x_ GR_5_all ~~gone~~ | a | b |",
        "# heading #",
        "line\nbreak\r\n\n- list\n\n---\ntags: [x]",
        "\\` `",
        "`",
    ],
)
def test_what_a_grid_names_is_shown_as_it_is(hostile):
    found, form, _ = made("gpt2", Template(name="plain", system=hostile), title=f"training {hostile}")
    served: Any = form.tokenizer
    assert found.title == " ".join(f"training {hostile}".split())
    messages = [{"role": "user", "content": ASKED}]
    shown = served.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found.blocks[1] == shown.replace("\r\n", "\n") and hostile in shown
    assert repr(hostile) in found.codes
    assert len(found.notes) == 7 and found.front == read(card(form, Encoder(served, Template(name="plain")), "t")).front


def test_an_exported_folder_has_the_card_of_its_tokenizer(tmp_path):
    found, form, _ = made("llama3", Template(name="alpaca"))
    form.tokenizer.save_pretrained(tmp_path)
    served: Any = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": ASKED}]
    assert served.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == found.blocks[1]
