"""Text to token ids in the middle of a sequence, and control tokens kept apart from text that is spelled like them.

A tokenizer treats the beginning of what it is given specially: SentencePiece-like ones put a ``▁`` before it. So the same
text has up to three encodings: at the start of a sequence, behind an added token (a section of its own), and inside, behind
other text. Each is the tokenizer with another setting. In literal text, control tokens are not looked for, so what is
spelled like one becomes the tokens of its characters.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cft_ray.data.chat_filling import Pieces
from cft_ray.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Where = Literal["start", "section", "inside"]
"""at the start of a sequence; behind an added token; behind other text"""


class _Marks(NamedTuple):
    """A template's text: text, ids from its first control token to its last, and text; whether those strip what is beside."""

    before: str
    ids: list[int]
    behind: str
    lstrip: bool
    rstrip: bool


class Vocabulary:
    """A tokenizer's ways to encode.

    Args:
        tokenizer: a fast one with an end-of-sequence token; not changed.
        marks: text that a chat template writes: added tokens in it are control tokens, whether flagged special or not.

    Raises:
        UserError: the tokenizer is of another kind.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", marks: str = "") -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        end = tokenizer.eos_token_id
        if not tokenizer.is_fast or backend is None or not isinstance(end, int):
            raise UserError(
                "the tokenizer is not a fast one with an end-of-sequence token",
                where=str(tokenizer.name_or_path or type(tokenizer).__name__),
                fix="use a model that has one",
            )
        self.end: int = end
        """id of the end-of-sequence token"""
        self._state: dict[str, Any] = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        named = set(tokenizer.all_special_tokens)
        for token in self._state["added_tokens"]:
            # <think> is a mark in some templates, and the model's own word in answers.
            marked = token["content"] in marks and "think" not in token["content"] and token["content"].strip() != ""
            token["special"] = token["special"] or token["content"] in named or marked
        self._added = {token["id"] for token in self._state["added_tokens"]}
        self._taking = {token["id"] for token in self._state["added_tokens"] if token["rstrip"]}
        control = [token for token in self._state["added_tokens"] if token["special"]]
        self._control = {token["content"]: token for token in control}
        spelled = sorted((re.escape(text) for text in self._control if text), key=len, reverse=True)
        self.spelled = re.compile("|".join(spelled) if spelled else "(?!)")
        """control tokens as text spells them"""
        unknown = self._state["model"].get("unk_token")
        self._forbidden = frozenset(token["id"] for token in control if token["content"] != unknown) - {
            self._state["model"].get("unk_id")
        }
        self._tokenizers: dict[str, Tokenizer] = {}
        self._marks = lru_cache(256)(self._marked)
        whole = backend.encode("a", add_special_tokens=True).ids
        bare = backend.encode("a", add_special_tokens=False).ids
        first = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        self.prefix: tuple[int, ...] = tuple(whole[:first])
        """ids that the tokenizer puts before a text by itself"""

    def spells_control(self, texts: Iterable[str]) -> bool:
        """Whether a text has a control token's spelling in it."""
        return any(self.spelled.search(text) for text in texts)

    def control_in(self, text: str) -> tuple[int, int, int] | None:
        """(begin, end, id) of the first control token that a template's text spells."""
        found = self.spelled.search(text)
        return None if found is None else (found.start(), found.end(), self._control[found[0]]["id"])

    def after(self, ids: Sequence[int]) -> Where:
        """Where text stands that follows these ids."""
        if not ids:
            return "start"
        return "section" if ids[-1] in self._added else "inside"

    def takes_space(self, ids: Sequence[int]) -> bool:
        """Whether the last of these ids is a token that takes the white space behind it, as Phi-3's marks do."""
        return bool(ids) and ids[-1] in self._taking

    def encode(self, texts: Sequence[str], where: Where, *, literal: bool) -> list[list[int]]:
        """Token ids of each text, nothing put before or behind.

        Args:
            texts: what to encode.
            where: what they follow.
            literal: control tokens spelled in them are characters.
        """
        if not texts:
            return []
        ids = [each.ids for each in self._tokenizer(where, literal).encode_batch_fast(texts, add_special_tokens=False)]
        if literal:
            for place, found in enumerate(ids):
                if not self._forbidden.isdisjoint(found):
                    ids[place] = self._broken(texts[place], where)
        return ids

    def encode_mixed(self, texts: Sequence[tuple[Pieces, Where]]) -> list[list[int]]:
        """Token ids of texts in pieces, each with what it follows; no seam between text and text."""
        parted = [self._parts(pieces) for pieces, _ in texts]
        runs: dict[Where, dict[str, list[int]]] = {"start": {}, "section": {}, "inside": {}}
        for (first, marked), (_, where) in zip(parted, texts, strict=True):
            runs[where][first] = []
            for _, run in marked:
                runs["section"][run] = []
        for where, found in runs.items():
            found.pop("", None)
            found.update(zip(found, self.encode(list(found), where, literal=True), strict=True))
            found[""] = []
        section = runs["section"]
        encoded = []
        for (first, marked), (_, where) in zip(parted, texts, strict=True):
            ids = list(runs[where][first])
            for marks, run in marked:
                ids += marks
                ids += section[run]
            encoded.append(ids)
        return encoded

    def last_text(self, pieces: Pieces, least: int) -> str:
        """The text behind the last control token of pieces, or its end of at least so many characters, if it has them."""
        text = ""
        for piece, literal in reversed(pieces):
            marks = None if literal else self._marks(piece)
            text = (piece if marks is None else marks.behind) + text
            if marks is not None or len(text) >= least:
                break
        return text

    def _parts(self, pieces: Pieces) -> tuple[str, list[tuple[list[int], str]]]:
        """Pieces as a text and, in turn, ids of control tokens and a text behind them."""
        texts, ids, strip = [""], [], False
        for piece, literal in pieces:
            marks = None if literal else self._marks(piece)
            before = piece if marks is None else marks.before
            if strip:
                before = before.lstrip()
                strip = not before
            texts[-1] += before
            if marks is not None:
                if marks.lstrip:
                    texts[-1] = texts[-1].rstrip()
                ids.append(marks.ids)
                texts.append(marks.behind)
                strip = marks.rstrip and not marks.behind
        return texts[0], list(zip(ids, texts[1:], strict=True))

    def _marked(self, text: str) -> "_Marks | None":
        """A template's text around its control tokens; None: there are none in it."""
        ids: list[int] = []
        begin, rstrip = 0, False
        tokens = [(found.start(), found.end(), self._control[found[0]]) for found in self.spelled.finditer(text)]
        for start, stop, token in tokens:
            if ids:
                run = text[begin:start].lstrip() if rstrip else text[begin:start]
                run = run.rstrip() if token["lstrip"] else run
                ids += self.encode([run], "section", literal=True)[0] if run else []
            ids.append(token["id"])
            begin, rstrip = stop, token["rstrip"]
        if not tokens:
            return None
        behind = text[begin:].lstrip() if rstrip else text[begin:]
        return _Marks(text[: tokens[0][0]], ids, behind, tokens[0][2]["lstrip"], rstrip)

    def _broken(self, text: str, where: Where) -> list[int]:
        """A text whose spelling of a control token the model takes for the token even so: broken inside it."""
        parts, begin = [], 0
        for found in self.spelled.finditer(text):
            parts.append(text[begin : found.start() + 1])
            begin = found.start() + 1
        parts.append(text[begin:])
        for split in (parts, list(text)):
            ids: list[int] = []
            for part in split:
                ids += self._tokenizer(where if not ids else "inside", True).encode(part, add_special_tokens=False).ids
            if self._forbidden.isdisjoint(ids):
                break
        return ids

    def _tokenizer(self, where: Where, literal: bool) -> "Tokenizer":
        from tokenizers import Tokenizer

        key = f"{where}/{literal}"
        if key not in self._tokenizers:
            state = self._state if where == "start" else _placed(self._state, where)
            # Where the place changes nothing, one tokenizer serves.
            other = f"start/{literal}"
            if where != "start" and state == self._state:
                self._tokenizers[key] = self._tokenizer("start", literal)
            else:
                made = Tokenizer.from_str(json.dumps(state))
                made.encode_special_tokens = literal
                self._tokenizers[key if where != "start" else other] = made
        return self._tokenizers[key]


def _placed(state: dict[str, Any], where: Where) -> dict[str, Any]:
    """The tokenizer's description, for text that does not start a sequence."""
    return state | {part: _part(state[part], where) for part in ("normalizer", "pre_tokenizer")}


def _part(part: Any, where: Where) -> Any:
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        return part | {name: [made for each in part[name] if (made := _part(each, where)) is not None]}
    if kind == "Metaspace" and (where == "inside" or part.get("prepend_scheme") == "first"):
        return part | {"prepend_scheme": "never"}
    if where == "inside":
        if kind == "Prepend":
            return None
        if kind == "ByteLevel" and "add_prefix_space" in part:
            return part | {"add_prefix_space": False}
        if kind == "Strip":
            return part | {"strip_left": False}
    return part
