"""Text to token ids in the middle of a sequence, and control tokens kept apart from text that is spelled like them.

A tokenizer treats the beginning of what it is given specially: SentencePiece-like ones put a ``▁`` before it. So the same
text has up to three encodings: at the start of a sequence, behind an added token (a section of its own), and inside, behind
other text. Each is the tokenizer with another setting. In literal text, control tokens are not looked for, so what is
spelled like one becomes the tokens of its characters.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from cft_ray.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Where = Literal["start", "section", "inside"]
"""at the start of a sequence; behind an added token; behind other text"""


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

    def encode_mixed(self, pieces: Sequence[tuple[str, bool]], where: Where) -> list[int]:
        """Token ids of one text of several pieces, (text, whether it is literal); no seam between text and text."""
        ids: list[int] = []
        run, strip = "", False

        def flush() -> None:
            nonlocal run
            if run:
                ids.extend(self.encode([run], self.after(ids) if ids else where, literal=True)[0])
            run = ""

        for piece, literal in pieces:
            text = piece
            while text:
                found = None if literal else self.spelled.search(text)
                before = text if found is None else text[: found.start()]
                if strip:
                    before = before.lstrip()
                    strip = not before
                run += before
                if found is None:
                    break
                token = self._control[found[0]]
                run = run.rstrip() if token["lstrip"] else run
                flush()
                ids.append(token["id"])
                strip, text = token["rstrip"], text[found.end() :]
        flush()
        return ids

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
