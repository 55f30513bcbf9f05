"""A template as any chat server applies it: what a trained model's tokenizer says of how the model was taught.

The grid's own templates get a form in Jinja; a chat template that the model came with is kept, with the grid's date and
system text in it, and with a place for a system text where it has none. Whether plain transformers makes the same tokens of
it as `cft_ray.data.encoding` is tried out, not assumed.
"""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from cft_ray.data.encoding import Encoder
from cft_ray.data.templates import ALPACA_WITHOUT_INPUT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPENING = {
    "alpaca": "{%- set opening = (system or " + json.dumps(ALPACA_WITHOUT_INPUT) + r") + '\n\n' -%}",
    "plain": r"{%- set opening = system + '\n\n' if system else '' -%}",
    "toy": r"{%- set opening = system + '\n' if system else '' -%}",
}
_ASKED = {
    "alpaca": r"'### Instruction:\n' + message['content'] + '\n\n### Response:\n'",
    "plain": r"message['content'] + '\n\n'",
    "toy": r"message['content'] + ' ='",
}
_OWN = (
    "{{%- set system = {system} -%}}"
    "{{%- if messages[0]['role'] == 'system' -%}}"
    "{{%- set system = messages[0]['content'] or system -%}}{{%- set messages = messages[1:] -%}}{{%- endif -%}}"
    "{opening}"
    "{{%- set said = namespace(text='') -%}}"
    "{{%- for message in messages -%}}"
    "{{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}}"
    "{{{{- raise_exception('user and assistant take turns, the user first') -}}}}{{%- endif -%}}"
    "{{%- if message['role'] == 'user' -%}}"
    "{{%- set said.text = said.text + (opening if loop.first else '') + {asked} -%}}"
    "{{%- else -%}}{{%- set said.text = said.text + message['content'] + {end} -%}}{{%- endif -%}}"
    "{{%- endfor -%}}"
    "{{{{- {begin} + {lead} + said.text -}}}}"
)
_LEADS = ("''", "('' if said.text.startswith(' ') else ' ')")
"""what stands between the beginning of a sequence and its text: some tokenizers see a word's beginning only behind a space"""
_TRIED = ("a", " a", "\n\na b", "日本 é", "A\tb  c.\n")
_NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


@dataclass(frozen=True)
class ChatForm:
    """How a trained model is asked.

    Args:
        tokenizer: a copy that carries the template.
        ends: ids that end an answer.
        faithful: whether plain transformers asks with the ids that were taught, wherever no text spells a control token.
    """

    tokenizer: "PreTrainedTokenizerBase"
    ends: tuple[int, ...]
    faithful: bool


def chat_form(tokenizer: "PreTrainedTokenizerBase", encoder: Encoder) -> ChatForm:
    """The tokenizer of a model that was trained with an encoder's template.

    Args:
        tokenizer: that the encoder was made of; not changed.
        encoder: with a template.
    """
    made: Any = copy.deepcopy(tokenizer)
    for form in (_kept(tokenizer, encoder),) if encoder.chat is not None else _own(tokenizer, encoder):
        made.chat_template = form
        if _same(made, encoder):
            return ChatForm(made, encoder.ends, faithful=True)
    return ChatForm(made, encoder.ends, faithful=False)


def _own(tokenizer: Any, encoder: Encoder) -> Sequence[str]:
    """The grid's own template in Jinja, for each way to begin a text; the last tried is the most common."""
    assert encoder.template is not None
    name = encoder.template.name
    told = {
        "system": _literal(encoder.template.system or ""),
        "opening": _OPENING[name],
        "asked": _ASKED[name],
        "end": _literal(tokenizer.convert_ids_to_tokens(encoder.vocabulary.end)),
        "begin": _literal("".join(tokenizer.convert_ids_to_tokens(list(encoder.vocabulary.prefix)))),
    }
    return [_OWN.format(**told, lead=lead) for lead in (*_LEADS, _LEADS[0])]


def _kept(tokenizer: Any, encoder: Encoder) -> str:
    """The tokenizer's template, with what the encoder adds to it before it."""
    assert encoder.chat is not None and encoder.template is not None
    today = date.fromisoformat(encoder.template.date)
    source: str = tokenizer.get_chat_template()
    form = _NOW.sub(lambda found: _literal(today.strftime(found[2])), source)
    before = []
    if encoder.template.system:
        first = "[{'role': 'system', 'content': " + _literal(encoder.template.system) + "}]"
        before.append("{%- if messages[0]['role'] != 'system' -%}{%- set messages = " + first + " + messages -%}{%- endif -%}")
    if encoder.chat.merged:
        before.append(
            "{%- if messages[0]['role'] == 'system' and messages | length > 1 -%}"
            r"{%- set first = {'role': 'user', 'content': messages[0]['content'] + '\n\n' + messages[1]['content']} -%}"
            "{%- set messages = [first] + messages[2:] -%}{%- endif -%}"
        )
    if encoder.chat.parts:
        before.append(
            "{%- set given = namespace(messages=[]) -%}{%- for message in messages -%}"
            "{%- set content = message['content'] -%}"
            "{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}"
            "{%- set given.messages = given.messages + [{'role': message['role'], 'content': content}] -%}"
            "{%- endfor -%}{%- set messages = given.messages -%}"
        )
    if "date_string" in form:
        before.append("{%- set date_string = " + _literal(today.strftime("%d %b %Y")) + " -%}")
    return "".join(part for part in before if part not in source) + form


def _same(tokenizer: Any, encoder: Encoder) -> bool:
    """Whether plain transformers makes the encoder's ids of some prompts."""
    for system in ("", "Be brief."):
        rows = [{"system": system, "instruction": text} for text in _TRIED]
        for row, ids in zip(rows, encoder.prompts(rows), strict=True):
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": row["instruction"]})
            found = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
            if found != ids:
                return False
    return True


def _literal(text: str) -> str:
    """A text as Jinja writes it."""
    return json.dumps(text, ensure_ascii=False)
