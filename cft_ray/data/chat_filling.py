"""A chat template as a text with gaps, for templates that write what they are given without looking at it.

Rendering each row anew costs more than encoding it. Most templates write contents as they are, or stripped, and decide by
roles and places alone; then all conversations of the same roles are one text with other contents in its gaps. That a template
is such a one is seen twice: contents are given to it as text that raises when it is looked at, and contents that hold each
literal of the template's own, and what is written otherwise in other forms, must come out of the gaps as out of the template.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

Pieces = list[tuple[str, bool]]
"""(text, whether it is the row's own) in order"""
_PLACE = re.compile(r"(Sz)?Qz(\d+)zQ")
_STRIPPED = "Sz"
_HOSTILE = (
    *("", "a", "12", "null", "[]", "A b. " * 2000),
    *(" \n a\t\n ", "\n\na", " '\"\\<&>{{ a }}{% b %}\r\n", "\u00a0\u65e5\u672c \u00e9\u2028"),
)
_LONGEST = 200
"""characters of a template's literal that may be compared with a content; longer ones are texts that it writes"""


class Form(NamedTuple):
    """What a template writes for conversations of the same roles.

    Args:
        marks: its own text before, between and behind the contents.
        stripped: of each content, whether white space is taken off its ends.
    """

    marks: tuple[str, ...]
    stripped: tuple[bool, ...]

    def pieces(self, contents: Sequence[str]) -> Pieces:
        """The template's text with these contents."""
        pieces = [(self.marks[0], False)] if self.marks[0] else []
        for content, stripped, mark in zip(contents, self.stripped, self.marks[1:], strict=True):
            if text := content.strip() if stripped else content:
                pieces.append((text, True))
            if mark:
                pieces.append((mark, False))
        return pieces


def form(render: Callable[[Sequence[dict[str, str]]], str | None], roles: Sequence[str], literals: Sequence[str]) -> Form | None:
    """The form of a template for conversations of these roles; None: its text depends on contents.

    Args:
        render: messages -> text; None where the template refuses them or an error was raised in it.
        roles: of the messages.
        literals: of the template.
    """

    def rendered(contents: Sequence[str]) -> str | None:
        return render([{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)])

    text = rendered([_Unseen(f"Qz{place}zQ") for place in range(len(roles))])
    found = list(_PLACE.finditer(text or ""))
    if text is None or [match[2] for match in found] != [str(place) for place in range(len(roles))]:
        return None
    begins = [0, *(match.end() for match in found)]
    stops = [*(match.start() for match in found), len(text)]
    made = Form(
        tuple(text[begin:stop] for begin, stop in zip(begins, stops, strict=True)),
        tuple(match[1] is not None for match in found),
    )
    for contents in _hostile(len(roles), literals):
        if rendered(contents) != "".join(text for text, _ in made.pieces(contents)):
            return None
    return made


def literals(source: str) -> list[str]:
    """The texts that a template's code names."""
    from jinja2 import Environment

    quoted = [value[1:-1] for _, kind, value in Environment().lex(source) if kind == "string"]
    return [text.encode("ascii", "backslashreplace").decode("unicode-escape") for text in quoted]


def _hostile(count: int, literals: Sequence[str]) -> Iterator[list[str]]:
    """Contents that show whether a template looks at them, all at once and each among harmless ones."""
    short = [text for text in dict.fromkeys(literals) if text and len(text) <= _LONGEST]
    for text in (*_HOSTILE, *(way for each in short for way in (each, f"{each}a", f"a{each}", f"a {each} b"))):
        yield [text] * count
        for place in range(count if count > 1 else 0):
            yield [text if place == other else "a" for other in range(count)]


class Looked(Exception):
    """A content was looked at."""


class _Unseen(str):
    """A text that may be written, joined to others and stripped; everything else that shows what it is raises."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> str:
        return _Unseen("".join((self, other)))

    def __radd__(self, other: Any) -> str:
        return _Unseen("".join((other, self)))

    def strip(self, chars: str | None = None) -> str:
        text = "".join((self,))
        if chars is not None or _PLACE.fullmatch(text) is None:
            raise Looked
        return self if text[:2] == _STRIPPED else _Unseen(_STRIPPED + text)

    def __bool__(self) -> bool:
        raise Looked


def _looked(*_: Any, **__: Any) -> Any:
    raise Looked


_KEPT = {"__new__", "__init__", "__class__", "__doc__", "__getattribute__", "__setattr__", "__delattr__", "__dir__", "__sizeof__"}
for _name in dir(str):
    if _name not in _KEPT and _name not in vars(_Unseen) and callable(getattr(str, _name)):
        setattr(_Unseen, _name, _looked)
