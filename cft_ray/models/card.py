"""The model card (``README.md``) of a trained model: in which words it was taught, and how to ask it in the same.

What a grid or a tokenizer names stands in it as it is: a name or a text never becomes Markdown of the card's own.
"""

import re
from typing import Any

from cft_ray.data.chat_form import ChatForm
from cft_ray.data.encoding import Encoder

_QUESTION = "Name three colours."
_MARKUP = re.compile(r"([\\`*_\[\]<>&~|#])")


def card(form: ChatForm, encoder: Encoder, title: str) -> str:
    """Markdown.

    Args:
        form: how the model is asked.
        encoder: how it was taught.
        title: what the training is called.
    """
    template = encoder.template
    assert template is not None
    tokenizer: Any = form.tokenizer
    asked = tokenizer.apply_chat_template([{"role": "user", "content": _QUESTION}], tokenize=False, add_generation_prompt=True)
    ends = " and ".join(f"{_code(token)} ({index})" for token, index in _ends(tokenizer, form.ends))
    chat = encoder.chat
    own = f"the template `{template.name}` of the grid, which `chat_template.jinja` holds in Jinja"
    notes = [
        f"It was taught in {own if chat is None else 'the chat template that its tokenizer came with'}.",
        f"Answers end with {ends}; `config.json` and `generation_config.json` name the same.",
        "A question is tokenised without further special tokens (`add_special_tokens=False`, as chat servers do): the "
        "template writes the beginning of the sequence, where there is one.",
    ]
    if template.system:
        notes.append(f"Where a conversation has no system text, it is {_code(repr(template.system))}.")
    if chat is not None and chat.merged:
        notes.append("The template has no place for a system text: it opens the first question, as in training.")
    if chat is not None and _dated(chat.tokenizer):
        notes.append(f"Where the template writes today's date it writes {template.date}, as in training.")
    notes.append(
        "In training, text that is spelled like a special token was taken as text. transformers and chat servers take it for "
        "the token: take such spellings out of what users say."
    )
    if not form.faithful:
        notes.append(
            "**Plain transformers does not make the tokens of training from this template**: the beginning of a question is "
            "tokenised otherwise. Ask with the token ids of `cft_ray.data.encoding.Encoder` where that matters."
        )
    fence = _ticks(asked, 3)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            f"# {_MARKUP.sub(_escaped, ' '.join(title.split()))}",
            "",
            "Trained by cft-ray.",
            "",
            "## How to ask it",
            "",
            "```python",
            f'messages = [{{"role": "user", "content": "{_QUESTION}"}}]',
            "ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)",
            "```",
            "",
            "asks with the text",
            "",
            fence,
            asked,
            fence,
            "",
            *(f"- {note}" for note in notes),
            "",
        ]
    )


def _ends(tokenizer: Any, ends: tuple[int, ...]) -> list[tuple[str, int]]:
    return [(tokenizer.convert_ids_to_tokens(index), index) for index in ends]


def _dated(tokenizer: Any) -> bool:
    return any(name in tokenizer.get_chat_template() for name in ("strftime_now", "date_string"))


def _escaped(found: re.Match[str]) -> str:
    """A character of Markdown's or HTML's as itself: CommonMark, 2.4."""
    return f"\\{found[0]}"


def _ticks(text: str, least: int) -> str:
    """More backticks than stand in a row in the text, as its fence: CommonMark, 4.5 and 6.1."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _code(text: str) -> str:
    """A text of one line as code."""
    fence = _ticks(text, 1)
    beside = " " if text[:1] in ("`", " ") or text[-1:] in ("`", " ") else ""
    return f"{fence}{beside}{text}{beside}{fence}"
