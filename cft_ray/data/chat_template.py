"""A conversation as a tokenizer's chat template writes it, in pieces: what is asked, what is answered, and in both what is
the row's text and what the template's marks.

The template decides alone; what it loses is found out. Where it has no place for a system text, that text opens the user's
turn; where it takes content as a list of parts, it gets parts; where it opens ``<think>`` for an answer, the answer goes on
from there. Everything else that does not come out as it went in is an error that names the row.
"""

import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from cft_ray.data import chat_filling
from cft_ray.data.chat_filling import Form, Pieces
from cft_ray.data.templates import Conversation
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
_WHERE = "template.name: chat"
_THINK, _THOUGHT = "<think>", "</think>"
_MARK = "Qz{}zQ"
_TRIED = ("a", " a\n", "\n\na b", "日本 é", "        x = 1")


class Unwritable(Exception):
    """A row that is left out; the reason is its only argument."""


class Turn(NamedTuple):
    """One answer of a conversation.

    Args:
        asked: the text since the answer before.
        answer: the answer as the template writes it, without `tail`.
        tail: what the template writes behind it that belongs to it.
    """

    asked: Pieces
    answer: Pieces
    tail: str


class Written(NamedTuple):
    """A conversation.

    Args:
        turns: its answers that a model would be asked for in these words; at least the last.
        untaught: its earlier answers that are none of them: their text is part of what is asked.
    """

    turns: tuple[Turn, ...]
    untaught: int = 0


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
    spelled: re.Pattern[str] = re.compile("(?!)")
    """control tokens as text spells them, known once `marks` are: what a row spells so is its text all the same"""
    agrees: Callable[[Pieces], bool] = lambda _: True
    """whether a text in pieces becomes the ids that the tokenizer makes of it"""
    _skeletons: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    _forms: dict[tuple[bool, bool], tuple[Form, str, bool] | None] = field(default_factory=dict)

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

    def turns(self, said: Conversation, output: str | None, row: str) -> Written:
        """What is asked and answered in a conversation.

        Args:
            said: the conversation.
            output: its last answer; None: it is only asked for, and the last turn has no answer.
            row: name for messages.

        Raises:
            UserError: the template loses a part of it, or writes answers elsewhere than where it asks for them.
            Unwritable: the template changes text that is spelled like a control token.
        """
        if not said.turns and (filled := self._filled(said, output)) is not None:
            return filled
        question, messages = self._asked(said, row)
        asked = self._pieces(question, messages, ask=True)
        answer = None if output is None else self._answer(question, messages, output, row)
        earlier, untaught, asked = self._earlier(asked, question, messages)
        last = Turn(asked, [], "") if answer is None else Turn(asked, answer, self.tail)
        return Written((*earlier, last), untaught)

    def _filled(self, said: Conversation, output: str | None) -> Written | None:
        """What is written of one question and its answer, by a form; None where the template has none for it."""
        shape = (bool(said.system), output is not None)
        if shape not in self._forms:
            self._forms[shape] = self._form(*shape)
        if (found := self._forms[shape]) is None:
            return None
        form, lead, stripped = found
        contents = [said.asked]
        if said.system:
            contents = [f"{said.system}\n\n{said.asked}"] if self.merged else [said.system, said.asked]
        asked = form.pieces(contents)
        if output is None:
            return Written((Turn(asked, [], ""),))
        answer = [(lead, False)] if lead else []
        if text := output.strip() if stripped else output:
            answer.append((text, True))
        return Written((Turn(asked, answer, self.tail),))

    def _form(self, system: bool, answered: bool) -> tuple[Form, str, bool] | None:
        """The form of a question; what the template writes between it and an answer; whether it strips the answer."""
        said = Conversation("a" if system else "", (), "a", "")
        roles = [message["role"] for message in _messages(said, merged=self.merged)]
        literals = chat_filling.literals(str(self.tokenizer.get_chat_template()))
        asked = chat_filling.form(lambda messages: self._render(messages, ask=True), roles, literals)
        if asked is None or not all(self.agrees(asked.pieces([text] * len(roles))) for text in _TRIED):
            return None
        if not answered:
            return asked, "", False
        whole = chat_filling.form(lambda messages: self._render(messages, ask=False), [*roles, "assistant"], literals)
        if whole is None or whole.marks[-1] != self.tail:
            return None
        same = whole.marks[:-2] == asked.marks[:-1] and whole.stripped[:-1] == asked.stripped
        if not same or not whole.marks[-2].startswith(asked.marks[-1]):
            return None
        return asked, whole.marks[-2][len(asked.marks[-1]) :], whole.stripped[-1]

    def _answer(self, question: str, asked: Messages, output: str, row: str) -> Pieces:
        """The last answer behind the question, without the tail."""
        messages = [*asked, {"role": "assistant", "content": output}]
        whole = self._render(messages, ask=False)
        if whole is None:
            raise self._refusal(row, "refuses")
        if not whole.startswith(question):
            opened = question.rstrip()
            if not opened.endswith(_THINK) or not whole.startswith(opened.removesuffix(_THINK)):
                raise self._refusal(row, "asks in other words than those in which it writes an answer in")
            # As templates do that can be asked to think: no thought is an empty one.
            thought = output.lstrip()
            if thought.startswith(_THINK):
                return [(thought[len(_THINK) :].lstrip("\n"), True)]
            return [(f"\n{_THOUGHT}\n\n", False), (output, True)]
        if not whole.endswith(self.tail) or len(whole) - len(self.tail) < len(question):
            raise self._refusal(row, "ends differently after")
        body = whole[: len(whole) - len(self.tail)]
        _, answer = _cut(self._pieces(whole, messages, ask=False), len(question))
        if _squeezed(output) not in _squeezed(body[len(question) :]):
            raise self._refusal(row, "does not write the whole answer of")
        return _cut(answer, len(body) - len(question))[0]

    def _earlier(self, asked: Pieces, question: str, messages: Messages) -> tuple[list[Turn], int, Pieces]:
        """The earlier turns of a prompt; how many of its answers are none of them; and what is left of it.

        An earlier answer is a turn where what stands before it is what a model would be asked there.
        """
        turns: list[Turn] = []
        done = untaught = 0
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:place], ask=True)
            begin = -1 if before is None or not question.startswith(before) else len(before)
            content = message["content"].strip()
            found = question.find(content, begin) if begin >= done else -1
            if found < 0 or question[begin:found].strip():
                untaught += 1
                continue
            stop = found + len(content)
            tail = _common(question[stop:], self.tail)
            first, asked = _cut(asked, begin - done)
            answer, asked = _cut(asked, stop - begin)
            _, asked = _cut(asked, len(tail))
            turns.append(Turn(first, answer, tail))
            done = stop + len(tail)
        return turns, untaught, asked

    def _asked(self, said: Conversation, row: str) -> tuple[str, Messages]:
        text, messages = None, []
        for merged in (False, True) if said.system and not self.merged else (self.merged,):
            messages = _messages(said, merged=merged)
            text = self._render(messages, ask=True)
            if text is not None and _in_order([message["content"] for message in messages], text):
                return text, messages
        if text is not None:
            self._pieces(text, messages, ask=True)  # where it is spelled control tokens that are lost, that is said
        raise self._refusal(row, "loses a part of")

    def _pieces(self, text: str, messages: Messages, *, ask: bool) -> Pieces:
        """A rendered text, with what messages spell like control tokens kept apart.

        Those spellings are taken out, the rest is rendered, and they are put back in: if that is not the same text, the
        template looks at them, and nothing says which of those in the text are the row's.
        """
        contents = [message["content"] for message in messages]
        found = [spelled for content in contents for spelled in self.spelled.findall(content)]
        if not found:
            return [(text, False)]
        mark = next(mark for number in count() if (mark := _MARK.format(number)) not in text)
        hidden = [message | {"content": self.spelled.sub(mark, message["content"])} for message in messages]
        parts = (self._render(hidden, ask=ask) or "").split(mark)
        pieces: Pieces = [(parts[0], False)]
        for spelled, part in zip(found, parts[1:], strict=False):
            pieces += [(spelled, True), (part, False)]
        if len(parts) != len(found) + 1 or "".join(piece for piece, _ in pieces) != text:
            raise Unwritable("template_changes_spelling")
        return pieces

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
        except Exception as error:
            if not _of_template(error):
                raise
            return None
        return text if isinstance(text, str) else None

    def _refusal(self, row: str, what: str) -> UserError:
        name = self.tokenizer.name_or_path or type(self.tokenizer).__name__
        return UserError(
            f"the chat template of {name} {what} row {row}",
            where=_WHERE,
            fix="use the template alpaca or plain, leave the row out, or give the model's folder another chat_template.jinja",
        )


def _of_template(error: Exception) -> bool:
    """Whether an error is a template's: what it raises itself, or what is raised in its code."""
    from jinja2.exceptions import TemplateError

    frames = traceback.walk_tb(error.__traceback__)
    return isinstance(error, TemplateError) or any(frame.f_code.co_filename == "<template>" for frame, _ in frames)


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
    length = next((place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return left[:length]
