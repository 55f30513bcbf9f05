"""A conversation as a tokenizer's chat template writes it, in pieces: what is asked, what is answered, and in both what is
the row's text and what the template's marks.

The template decides alone; what it loses is found out. Where it has no place for a system text, that text opens the user's
turn; where it takes content as a list of parts, it gets parts; where it opens ``<think>`` for an answer, the answer goes on
from there. Everything else that does not come out as it went in is an error that names the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from cft_ray.data.templates import Conversation
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pieces = list[tuple[str, bool]]
"""(text, whether it is the row's own) in order"""
Messages = list[dict[str, str]]
_WHERE = "template.name: chat"
_THINK, _THOUGHT = "<think>", "</think>"
_MARK = "Qz{}zQ"


@dataclass(frozen=True)
class Turn:
    """One answer of a conversation.

    Args:
        asked: the text since the answer before.
        answer: the answer as the template writes it, without `tail`.
        tail: what the template writes behind it that belongs to it.
        taught: False: an earlier answer that a model would not be asked for in these words.
    """

    asked: Pieces
    answer: Pieces
    tail: str
    taught: bool = True


@dataclass
class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: whose.
        template: the date that is written where the template asks for today's.

    Raises:
        UserError: there is none, or one that loses what it is given.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: Template
    parts: bool = False
    merged: bool = False
    """a system text opens the user's turn"""
    tail: str = ""
    """what is written behind the last answer"""
    _skeletons: dict[tuple[str, ...], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template",
                where=_WHERE,
                fix="use the template alpaca or plain, or a model whose tokenizer has a chat template",
            )
        plain = self._skeleton(("user", "assistant"))
        if plain is None:
            self.parts = True
            plain = self._skeleton(("user", "assistant"))
        if plain is None:
            raise UserError(
                "the tokenizer's chat template loses the text of a user's or an assistant's turn",
                where=_WHERE,
                fix="use the template alpaca or plain, or give the model's folder another chat_template.jinja",
            )
        self.tail = plain[-1]
        self.merged = self._skeleton(("system", "user", "assistant")) is None

    @property
    def marks(self) -> str:
        """The template's own text in a conversation of two turns."""
        asked = self._render([{"role": "user", "content": _MARK}], ask=True) or ""
        return (
            "".join(self._skeleton(("user", "assistant", "user", "assistant")) or self._skeleton(("user", "assistant")) or ())
            + asked
        )

    def prompt(self, said: Conversation, row: str) -> Pieces:
        """What a model is given to answer.

        Raises:
            UserError: the template loses a part of it.
        """
        text, messages = self._asked(said, row)
        return self._pieces(text, messages, row)

    def turns(self, said: Conversation, output: str, row: str) -> list[Turn]:
        """All answers of a conversation.

        Args:
            said: the conversation.
            output: its last answer.
            row: name for messages.

        Raises:
            UserError: the template loses a part of it, or writes answers elsewhere than where it asks for them.
        """
        question, messages = self._asked(said, row)
        messages = [*messages, {"role": "assistant", "content": output}]
        whole = self._render(messages, ask=False)
        if whole is None:
            raise self._refusal(row, "refuses")
        answer: Pieces | None = None
        if not whole.startswith(question):
            opened = question.rstrip()
            if not opened.endswith(_THINK) or not whole.startswith(opened.removesuffix(_THINK)):
                raise self._refusal(row, "asks in other words than those in which it writes an answer in")
            # As templates do that can be asked to think: no thought is an empty one.
            thought = output.lstrip()
            thought = thought[len(_THINK) :].lstrip("\n") if thought.startswith(_THINK) else f"\n{_THOUGHT}\n\n{output}"
            answer = [(thought, True)]
            whole = question + thought + self.tail
        if not whole.endswith(self.tail) or len(whole) - len(self.tail) < len(question):
            raise self._refusal(row, "ends differently after")
        body = whole[: len(whole) - len(self.tail)]
        if _squeezed(output) not in _squeezed(body[len(question) :] if answer is None else question + body[len(question) :]):
            raise self._refusal(row, "does not write the whole answer of")
        pieces = self._pieces(body if answer is None else question, messages if answer is None else messages[:-1], row)
        asked, rest = _cut(pieces, len(question))
        turns = self._earlier(asked, question, messages, row) if said.turns else [Turn(asked, [], "")]
        last = turns.pop()
        return [*turns, Turn(last.asked, answer or rest, self.tail)]

    def _earlier(self, asked: Pieces, question: str, messages: Messages, row: str) -> list[Turn]:
        """The earlier turns of a prompt, then one that has what is left of it."""
        turns: list[Turn] = []
        done = 0
        for place, message in enumerate(messages[:-1]):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:place], ask=True) or ""
            taught = question.startswith(before) and len(before) >= done
            content = message["content"].strip()
            begin = len(before) if taught else question.find(content, done)
            found = question.find(content, begin)
            if begin < 0 or found < 0 or not (question[begin:found].isspace() or begin == found or not taught):
                taught, found = False, max(found, done)
                begin = found
            stop = found + len(content)
            first, asked = _cut(asked, begin - done)
            answer, asked = _cut(asked, stop - begin)
            tail = _common(question[stop:], self.tail)
            _, asked = _cut(asked, len(tail))
            turns.append(Turn(first, answer, tail, taught))
            done = stop + len(tail)
        return [*turns, Turn(asked, [], "")]

    def _asked(self, said: Conversation, row: str) -> tuple[str, Messages]:
        for merged in (False, True) if said.system and not self.merged else (self.merged,):
            messages = _messages(said, merged=merged)
            text = self._render(messages, ask=True)
            if text is not None and _in_order([message["content"] for message in messages], text):
                return text, messages
        raise self._refusal(row, "loses a part of")

    def _pieces(self, text: str, messages: Messages, row: str) -> Pieces:
        """A rendered text taken apart at its messages' contents."""
        roles = tuple(message["role"] for message in messages)
        marks = self._skeleton(roles, ask=roles[-1] != "assistant")
        if marks is None:
            return [(text, False)]
        pieces: Pieces = [(marks[0], False)]
        at = len(marks[0])
        if not text.startswith(marks[0]):
            return [(text, False)]
        for message, mark in zip(messages, marks[1:], strict=True):
            content = message["content"]
            follows = "" if mark is marks[-1] and roles[-1] == "assistant" else mark
            forms = (content, content.strip(), content.lstrip(), content.rstrip())
            form = next((form for form in forms if text.startswith(form + follows, at)), None)
            if form is None:
                return [(text, False)]
            pieces += [(form, True), (follows, False)]
            at += len(form) + len(follows)
        return pieces if at == len(text) else [(text, False)]

    def _skeleton(self, roles: tuple[str, ...], *, ask: bool = False) -> list[str] | None:
        """The template's own text before, between and behind the contents of messages; None: some get lost."""
        key = (*roles, str(ask), str(self.parts))
        if key not in self._skeletons:
            contents = [_MARK.format(place) for place in range(len(roles))]
            messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
            text = self._render(messages, ask=ask)
            marks: list[str] | None = []
            for content in contents:
                if text is None or marks is None or text.count(content) != 1:
                    marks = None
                    break
                before, text = text.split(content)
                marks.append(before)
            self._skeletons[key] = [*marks, text or ""] if marks is not None else []
        return self._skeletons[key] or None

    def _render(self, messages: Sequence[dict[str, str]], *, ask: bool) -> str | None:
        """The template's text; None where it refuses the messages."""
        given: Any = list(messages)
        if self.parts:
            given = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]
        today = date.fromisoformat(self.template.date)
        try:
            text = self.tokenizer.apply_chat_template(
                given,
                tokenize=False,
                add_generation_prompt=ask,
                date_string=today.strftime("%d %b %Y"),
                strftime_now=today.strftime,
            )
        except Exception:  # noqa: BLE001 - a template is a program of its own: whatever it raises, it refuses
            return None
        return text if isinstance(text, str) else None

    def _refusal(self, row: str, what: str) -> UserError:
        name = self.tokenizer.name_or_path or type(self.tokenizer).__name__
        return UserError(
            f"the chat template of {name} {what} row {row}",
            where=_WHERE,
            fix="use the template alpaca or plain, leave the row out, or give the model's folder another chat_template.jinja",
        )


def _messages(said: Conversation, *, merged: bool) -> Messages:
    asked = [user for user, _ in said.turns] + [said.asked]
    if said.system and merged:
        asked[0] = f"{said.system}\n\n{asked[0]}"
    messages = [{"role": "system", "content": said.system}] if said.system and not merged else []
    for place, user in enumerate(asked):
        messages.append({"role": "user", "content": user})
        if place < len(said.turns):
            messages.append({"role": "assistant", "content": said.turns[place][1]})
    return messages


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _in_order(contents: Sequence[str], text: str) -> bool:
    text, at = _squeezed(text), 0
    for content in map(_squeezed, contents):
        at = text.find(content, at)
        if at < 0:
            return False
        at += len(content)
    return True


def _cut(pieces: Pieces, length: int) -> tuple[Pieces, Pieces]:
    """Pieces of the first ``length`` characters, and of the rest."""
    first: Pieces = []
    rest: Pieces = []
    for text, literal in pieces:
        taken = min(max(length, 0), len(text))
        if text[:taken]:
            first.append((text[:taken], literal))
        if text[taken:]:
            rest.append((text[taken:], literal))
        length -= len(text)
    return first, rest


def _common(left: str, right: str) -> str:
    """What both begin with."""
    count = 0
    while count < min(len(left), len(right)) and left[count] == right[count]:
        count += 1
    return left[:count]
