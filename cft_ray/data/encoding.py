"""How a row becomes tokens: the one encoding of training, replay, evaluation, judges and insight.

A prompt's ids are those that an engine is asked with; an answer's ids follow them, encoded apart, so that no token spans
the seam. A row's own text is text: what is spelled in it like a control token is encoded as characters. Control tokens come
from the template alone: what the tokenizer puts before a text by itself, a chat template's marks, and the end token behind
an answer that is whole.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cft_ray.data.chat_filling import Pieces
from cft_ray.data.chat_template import ChatTemplate, Turn, Unwritable, Written
from cft_ray.data.templates import OPENINGS, conversation, prompts
from cft_ray.data.vocabulary import Vocabulary, Where
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SEAM = 36
"""Characters before a seam among which those are that are looked at."""
_TEXTS = ("instruction", "output", "input", "system", "turns")
"""columns with a row's text"""
_END = re.compile(r"\S{0,12}\s{0,24}\Z")
_HEAD = re.compile(r"\s{0,24}\S{0,12}")
"""What is looked at on both sides of a seam: white space and a word's part that is more than a token across it would have."""


class Encoded(NamedTuple):
    """A row as tokens.

    Args:
        ids: the whole row.
        answers: (begin, end) of each answer in it, end token included.
        prompt: tokens before the last answer: what a model is asked with.
        spelled: whether the row's text has a control token's spelling in it.
        seam: whether its text encoded as one would have a token across a seam of question and answer.
        untaught: its earlier answers that are not taught, because no model would be asked for them in the words before them.
        refused: why it cannot be encoded; None: it is.
    """

    ids: list[int]
    answers: list[tuple[int, int]]
    prompt: int
    spelled: bool
    seam: bool = False
    untaught: int = 0
    refused: str | None = None


class Encoder:
    """Encodes rows for one tokenizer in one template.

    Args:
        tokenizer: a fast one with an end-of-sequence token; not changed.
        template: None: prompts are texts as they are.

    Raises:
        UserError: a tokenizer that cannot be used, no chat template, or one that loses text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: Template | None) -> None:
        self.template = template
        self.chat = ChatTemplate(tokenizer, template) if template is not None and template.name == "chat" else None
        self.vocabulary = Vocabulary(tokenizer, self.chat.marks if self.chat else "")
        if self.chat is not None:
            self.chat.spelled, self.chat.agrees = self.vocabulary.spelled, self._agrees
        end = self.vocabulary.control_in(self.chat.tail) if self.chat else None
        self._tail_end = 0 if self.chat is None or end is None else end[1]
        taught = self.vocabulary.end if end is None else end[2]
        self.ends: tuple[int, ...] = tuple(dict.fromkeys((taught, self.vocabulary.end)))
        """ids that end an answer: the one that is taught, and the tokenizer's end of sequence"""
        self._openings = self._shared()
        self._tails: dict[tuple[str, Where], list[int]] = {}
        """what is behind an answer, and what that follows -> ids"""
        self._merging: dict[tuple[str, str], bool] = {}
        """texts around a seam -> whether a token would span it"""

    def prompts(self, rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """What a model is asked with, for each row; outputs are not looked at.

        Raises:
            UserError: a row that the template cannot write.
        """
        found = self._encode(rows, [None] * len(rows), None)
        for given, row in zip(rows, found, strict=True):
            if row.refused is not None:
                raise UserError(
                    f"the chat template changes text that is spelled like a control token in row {given.get('id', '')}",
                    where="template.name: chat",
                    fix="use the template alpaca or plain, or leave the row out",
                )
        return [row.ids for row in found]

    def rows(self, rows: Sequence[Mapping[str, str]], ended: Sequence[bool] | None = None) -> list[Encoded]:
        """Prompts and answers.

        Args:
            rows: canonical rows.
            ended: whether each output is whole; an answer that was cut gets no end token. None: all are.

        Raises:
            UserError: a row that the template cannot write.
        """
        return self._encode(rows, [row["output"] for row in rows], ended)

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts that stand for themselves, after what the tokenizer puts before a text."""
        return [[*self.vocabulary.prefix, *ids] for ids in self.vocabulary.encode(texts, "start", literal=True)]

    def marked(self, texts: Sequence[str]) -> list[list[int]]:
        """Prompts in the template's words whose rows are not known any more."""
        if self.chat is None:
            return self.texts(texts)
        return self.vocabulary.encode(texts, "start", literal=False)

    def continued(self, prompt: Sequence[int], texts: Sequence[str]) -> list[list[int]]:
        """Beginnings of an answer to a prompt, as answers are taught."""
        return self.vocabulary.encode(texts, self._after(prompt), literal=True)

    def written(self, row: Mapping[str, str]) -> str:
        """A prompt as text, without what the tokenizer puts before it; for people and for names, not for encoding."""
        assert self.template is not None
        said = conversation(self.template, row)
        if self.chat is not None:
            turns = self.chat.turns(said, None, str(row.get("id", ""))).turns
            return "".join("".join(text for text, _ in (*turn.asked, *turn.answer)) + turn.tail for turn in turns)
        texts = prompts(self.template, said)
        return "".join(text + answer for text, (_, answer) in zip(texts, [*said.turns, ("", "")], strict=True))

    def _encode(
        self, rows: Sequence[Mapping[str, str]], outputs: Sequence[str | None], ended: Sequence[bool] | None
    ) -> list[Encoded]:
        written = [self._written(row, output) for row, output in zip(rows, outputs, strict=True)]
        turns = [() if isinstance(each, Unwritable) else each.turns for each in written]
        spelled = self._spelled(rows)
        start = [] if self.chat else list(self.vocabulary.prefix)
        ids = [list(start) for _ in rows]
        answers: list[list[tuple[int, int]]] = [[] for _ in rows]
        last = [0] * len(rows)
        seams: list[tuple[int, str, str]] = []
        for number in range(max(map(len, turns), default=0)):
            there = [place for place in range(len(rows)) if number < len(turns[place])]
            asked = [turns[place][number].asked for place in there]
            if number:
                asked = [self._behind(ids[place], pieces) for place, pieces in zip(there, asked, strict=True)]
            self._append(there, ids, asked, spelled, first=number == 0)
            for place in there:
                last[place] = len(ids[place])
            there = [place for place in there if outputs[place] is not None or number < len(turns[place]) - 1]
            seams += [(place, *pair) for place in there if (pair := self._seam(turns[place][number], ids[place]))]
            self._append(there, ids, [turns[place][number].answer for place in there], spelled, first=False)
            for place in there:
                final = number == len(turns[place]) - 1
                whole = not final or ended is None or ended[place]
                stop = self._close(ids[place], turns[place][number], final=final) if whole else len(ids[place])
                if stop > last[place]:
                    answers[place].append((last[place], stop))
        merging = self._merged(seams)
        return [
            Encoded(ids[place], answers[place], last[place], spelled[place], refused=str(each))
            if isinstance(each, Unwritable)
            else Encoded(ids[place], answers[place], last[place], spelled[place], place in merging, each.untaught)
            for place, each in enumerate(written)
        ]

    def _seam(self, turn: Turn, ids: list[int]) -> tuple[str, str] | None:
        """The text on both sides of an answer's beginning; None where no token can span it."""
        if not ids or not turn.answer or self._after(ids) != "inside":
            return None
        asked = self.vocabulary.last_text(turn.asked, SEAM)[-SEAM:]
        answer = "".join(text for text, _ in turn.answer)
        head = _HEAD.match(answer)
        end = _END.search(asked)
        return (end[0], head[0]) if asked and end and head else None

    def _merged(self, seams: Sequence[tuple[int, str, str]]) -> set[int]:
        """Places whose text around a seam is encoded otherwise as one."""
        new = sorted({(asked, answer) for _, asked, answer in seams} - self._merging.keys())
        parts = sorted({text for pair in new for text in pair})
        found = self.vocabulary.encode([*parts, *(asked + answer for asked, answer in new)], "inside", literal=True)
        apart = dict(zip(parts, found, strict=False))
        for pair, joined in zip(new, found[len(parts) :], strict=True):
            self._merging[pair] = joined != apart[pair[0]] + apart[pair[1]]
        return {place for place, asked, answer in seams if self._merging[asked, answer]}

    def _close(self, row: list[int], turn: Turn, *, final: bool) -> int:
        """Put an answer's end behind it: the template's mark up to its first control token, or the end of sequence; then what
        the template writes behind that. Returns where the answer ends."""
        if self.chat is None:
            row.append(self.vocabulary.end)
            return len(row)
        stop = self._tail_end if len(turn.tail) >= self._tail_end else 0
        if stop:
            row += self._tail(turn.tail[:stop], self.vocabulary.after(row))
        elif final:
            row.append(self.vocabulary.end)
        end = len(row)
        rest = turn.tail[stop:].lstrip() if self.vocabulary.takes_space(row) else turn.tail[stop:]
        if rest and (stop or not self._tail_end):
            row += self._tail(rest, self.vocabulary.after(row))
        return end

    def _behind(self, row: list[int], asked: Pieces) -> Pieces:
        """The next question as it stands behind an answer's end, which may take its white space; an answer keeps its own."""
        if not self.vocabulary.takes_space(row):
            return asked
        rest = list(asked)
        while rest:
            text, literal = rest.pop(0)
            if begin := text.lstrip():
                return [(begin, literal), *rest]
        return rest

    def _tail(self, text: str, where: Where) -> list[int]:
        if (text, where) not in self._tails:
            (self._tails[text, where],) = self.vocabulary.encode_mixed([([(text, False)], where)])
        return self._tails[text, where]

    def _append(self, there: list[int], ids: list[list[int]], texts: list[Pieces], spelled: list[bool], *, first: bool) -> None:
        """Encode a text behind each row's ids, many at a time.

        Text alone (a row's, or the grid's own words) is encoded where it stands, and so is what a chat template wrote of contents
        that spell no control token, at the start of a sequence. All else goes in runs between control tokens: behind one, a
        tokenizer may begin anew, with a word boundary.
        """
        alone: dict[Where, list[tuple[int, str]]] = {}
        rendered: list[tuple[int, str]] = []
        mixed: list[tuple[int, tuple[Pieces, Where]]] = []
        for place, pieces in zip(there, texts, strict=True):
            where: Where = "start" if first else self._after(ids[place])
            text, literal = pieces[0] if len(pieces) == 1 else ("", False)
            if literal:
                alone.setdefault(where, []).append((place, text))
            elif text and where == "start" and not spelled[place]:
                rendered.append((place, text))
            else:
                mixed.append((place, (pieces, where)))
        put = partial(_put, ids)
        put(mixed, self.vocabulary.encode_mixed([given for _, given in mixed]))
        put(rendered, self.vocabulary.encode([text for _, text in rendered], "start", literal=False))
        for where, group in alone.items():
            own = [text for _, text in group]
            put(group, self._started(own) if where == "start" else self.vocabulary.encode(own, where, literal=True))

    def _shared(self) -> dict[str, tuple[int, list[int]]]:
        """Beginnings of prompts -> characters and ids of their first part, if the rest may be encoded apart from it."""
        found: dict[str, tuple[int, list[int]]] = {}
        for opening, follows in OPENINGS.get(self.template.name, ()) if self.template is not None else ():
            rests = [follows + text for text in ("a", " a", "\n", "日本", "#")]
            (begin,) = self.vocabulary.encode([opening], "start", literal=True)
            whole = self.vocabulary.encode([opening + rest for rest in rests], "start", literal=True)
            if whole == [begin + rest for rest in self.vocabulary.encode(rests, "inside", literal=True)]:
                found[opening + follows] = len(opening), begin
        return found

    def _started(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the grid's own prompts at the start of a sequence; what many begin with is encoded once."""
        shared = [next((each for each in self._openings if text.startswith(each)), None) for text in texts]
        rests = [text[self._openings[each][0] :] for text, each in zip(texts, shared, strict=True) if each is not None]
        inside = iter(self.vocabulary.encode(rests, "inside", literal=True))
        others = [text for text, each in zip(texts, shared, strict=True) if each is None]
        start = iter(self.vocabulary.encode(others, "start", literal=True))
        return [next(start) if each is None else self._openings[each][1] + next(inside) for each in shared]

    def _after(self, ids: Sequence[int]) -> Where:
        """Where text stands that follows these ids; behind what the tokenizer puts before a text by itself, the text starts."""
        prefix = self.vocabulary.prefix
        if self.chat is None and len(ids) == len(prefix) and tuple(ids) == prefix:
            return "start"
        return self.vocabulary.after(ids)

    def _spelled(self, rows: Sequence[Mapping[str, str]]) -> list[bool]:
        """Of each row, whether its text spells a control token."""
        texts = ["\0".join([row.get(name) or "" for name in _TEXTS]) for row in rows]
        return [self.vocabulary.spells_control((text,)) for text in texts]

    def _agrees(self, pieces: Pieces) -> bool:
        """Whether a text in pieces that spells nothing itself becomes the ids that the tokenizer makes of it."""
        whole = self.vocabulary.encode(["".join(text for text, _ in pieces)], "start", literal=False)
        return self.vocabulary.encode_mixed([(pieces, "start")]) == whole

    def _written(self, row: Mapping[str, str], output: str | None) -> Written | Unwritable:
        assert self.template is not None
        said = conversation(self.template, row)
        if self.chat is not None:
            try:
                return self.chat.turns(said, output, str(row.get("id", "")))
            except Unwritable as error:
                return error
        answers = [*(answer for _, answer in said.turns), output or ""]
        return Written(
            tuple(
                Turn([(text, True)] if text else [], [(answer, True)] if answer else [], "")
                for text, answer in zip(prompts(self.template, said), answers, strict=True)
            )
        )


def _put(ids: list[list[int]], group: Sequence[tuple[int, object]], made: Sequence[list[int]]) -> None:
    """Tokens behind those of the rows at a group's places."""
    for (place, _), tokens in zip(group, made, strict=True):
        ids[place] += tokens
