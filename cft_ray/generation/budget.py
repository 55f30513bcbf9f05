"""How prompt and answer share a context: the one rule for benchmarks, AlpacaEval and replay. Pure.

The answer shrinks first. A prompt is cut only when it fills the context by itself; then tokens go from behind its opening
(the beginning-of-sequence token and the template's first words), so that it still begins and ends as the model was taught.
"""

from collections.abc import Sequence
from dataclasses import dataclass

CUT = "prompt_cut"
SHORTENED = "answer_shortened"
"""What happened to a request, as the manifest counts it."""
NEW_TOKENS = 256
"""Answer tokens where neither a task nor the grid says how many; the harness' own default."""
RESERVED = 4
"""A prompt that must be cut leaves the answer at most one part of so many of the context."""


def room(prompt: int, wanted: int, length: int) -> int:
    """Tokens that an answer may have: ``wanted``, or what a prompt of ``prompt`` tokens leaves of ``length``; below 1: none."""
    return min(wanted, length - prompt)


def cut(tokens: Sequence[int], limit: int, opening: int = 0) -> list[int]:
    """At most ``limit`` tokens: the first ``opening`` and the last ones; what lies between goes."""
    if len(tokens) <= limit:
        return list(tokens)
    begin = min(opening, limit)
    return [*tokens[:begin], *tokens[len(tokens) - (limit - begin) :]]


@dataclass(frozen=True)
class Fitted:
    """A request that fits.

    Args:
        tokens: of the prompt.
        new_tokens: most tokens of its answer, at least 1.
        change: `CUT`, `SHORTENED`, or None where it fitted as it was.
    """

    tokens: list[int]
    new_tokens: int
    change: str | None


def fitted(tokens: Sequence[int], wanted: int, length: int, opening: int = 0) -> Fitted:
    """A prompt and the room for its answer in a context of ``length`` tokens.

    Args:
        tokens: the whole prompt's.
        wanted: most tokens of the answer, if there is room.
        length: of prompt and answer together, at least 2.
        opening: tokens at the prompt's beginning that are not cut.

    Raises:
        ValueError: a context that holds no token of both.
    """
    if length < 2:
        raise ValueError(f"a context of {length} tokens has no room for a prompt and an answer")
    left = room(len(tokens), wanted, length)
    if left >= 1:
        return Fitted(list(tokens), left, SHORTENED if left < wanted else None)
    reserved = max(min(wanted, length // RESERVED), 1)
    return Fitted(cut(tokens, length - reserved, opening), reserved, CUT)


def common_opening(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens with which both begin."""
    return next((place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
