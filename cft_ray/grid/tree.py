"""YAML text to plain values that remember their lines.

Read as YAML 1.2 reads it: ``no`` is a language code and not *false*, ``1e-5`` is a number. The safe types alone exist; a
key written twice is an error instead of the last one winning; size, depth and the growth by aliases are limited while the
text is read, so that a hostile file costs nothing. Numbers are finite and have at most 64 bits; text has no control
characters, which would hide in names, paths and terminals.
"""

import math
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import yaml

from cft_ray.errors import UserError

MAX_VALUES = 200_000
MAX_DEPTH = 40

Place = tuple[str | int, ...]
"""Of a value inside the grid."""

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C ten times as fast
_UNREADABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Change the order in which other characters are shown, so that text reads otherwise than it is."""


class _Loader(_Base):
    """The safe loader with YAML 1.2's core types; only its events and its resolver are used."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - the base class's own shape


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


@dataclass
class Source:
    """Where the values of a grid come from.

    Args:
        name: the file as the user named it.
        lines: path inside the grid -> line in the file, from 1.
        changed: paths set on the command line.
    """

    name: str
    lines: dict[Place, int] = field(default_factory=dict)
    changed: set[Place] = field(default_factory=set)

    def where(self, path: "Place | list[str | int]") -> str:
        """``file: path.in.file (line N)``; the line is that of the nearest enclosing value that stands in the file."""
        whole = tuple(path)
        text = f"{self.name}: {dotted(whole)}" if whole else self.name
        for length in range(len(whole), -1, -1):
            if whole[:length] in self.changed:
                return f"{text} (--set)"
            if length and (line := self.lines.get(whole[:length])):
                return f"{text} (line {line})"
        return text

    def gives(self, path: "Place | list[str | int]") -> bool:
        """Whether the value at a path stands in the file, or was set by itself on the command line."""
        return tuple(path) in self.lines or tuple(path) in self.changed


def dotted(path: "Place | list[str | int]") -> str:
    """``pairs[0].phase1`` for ``("pairs", 0, "phase1")``; what cannot be printed is escaped."""
    text = ""
    for part in path:
        shown = part if isinstance(part, int) or part.isprintable() else ascii(part)
        text += f"[{part}]" if isinstance(part, int) else f".{shown}" if text else str(shown)
    return text


def hidden(text: str) -> str | None:
    """The first character that does not belong into a grid, by its name: a control character, half of one, a reordering."""
    for character in text:
        if character.isprintable() or character in "\t\n\r":
            continue
        if character in _BIDIRECTIONAL or unicodedata.category(character) in ("Cc", "Cs"):
            return f"U+{ord(character):04X}" + (f" ({name})" if (name := unicodedata.name(character, "")) else "")
    return None


class Tree:
    """Text to values: counts them, notes their lines, refuses what does not belong into a grid.

    Args:
        source: is told the lines; names file and line in messages.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.values = source, 0
        self.order: list[Place] = []
        self.anchors: dict[str, tuple[Any, list[tuple[Place, int]]]] = {}

    def load(self, text: str) -> Any:
        """The value of a YAML document; None for an empty one.

        Raises:
            UserError: not YAML, nested too deeply, too many values, a key twice, a number or character that is none.
        """
        if unreadable := _UNREADABLE.search(text.removeprefix("\ufeff")):
            found, line = unreadable.group(), text.count("\n", 0, unreadable.start()) + 1
            what = f"holds the character U+{ord(found):04X}, which is not text"
            raise UserError(what, where=f"{self.source.name} (line {line})", fix="take it out")
        loader = _Loader(text.removeprefix("\ufeff"))
        try:
            return self._document(loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f" (line {mark.line + 1})" if mark else ""
            problem = error.problem or error.context or "cannot be parsed"
            raise UserError(f"not YAML: {problem}", where=f"{self.source.name}{line}", fix="mend the line named here") from None
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"not YAML: {error}", where=self.source.name, fix="a YAML file") from None
        finally:
            loader.dispose()

    def _document(self, loader: Any) -> Any:
        loader.get_event()  # of the stream
        if loader.check_event(yaml.StreamEndEvent):
            return None
        loader.get_event()  # of the document
        value = self._value(loader, loader.get_event(), ())
        loader.get_event()
        if not loader.check_event(yaml.StreamEndEvent):
            line = loader.peek_event().start_mark.line + 1
            what = "a second document begins here"
            raise UserError(what, where=f"{self.source.name} (line {line})", fix="one grid a file: take out `---`")
        return value

    def _value(self, loader: Any, event: Any, path: Place) -> Any:
        self.values += 1
        line, first = event.start_mark.line + 1, len(self.order)
        self.source.lines.setdefault(path, line)
        self.order.append(path)
        if self.values > MAX_VALUES:
            raise UserError(
                "it, or what its aliases unfold to, has too many values", self._at(path, line), f"at most {MAX_VALUES}"
            )
        if len(path) > MAX_DEPTH:
            raise UserError("is nested too deeply", self._at((), line), f"at most {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._copied(event, path, line)
        if isinstance(event, yaml.ScalarEvent):
            value: Any = self._scalar(loader, event, path, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := loader.get_event(), yaml.SequenceEndEvent):
                value.append(self._value(loader, item, (*path, len(value))))
        else:
            value = self._mapping(loader, path)
        if event.anchor is not None:
            below = [(place[len(path) :], self.source.lines[place]) for place in self.order[first + 1 :]]
            self.anchors[event.anchor] = value, below
        return value

    def _copied(self, event: Any, path: Place, line: int) -> Any:
        if event.anchor not in self.anchors:
            raise UserError(f"there is no anchor &{event.anchor} above", self._at(path, line), "write the value out")
        value, below = self.anchors[event.anchor]
        self.values += len(below)
        if self.values > MAX_VALUES:
            raise UserError("its aliases unfold to too many values", self._at(path, line), f"at most {MAX_VALUES}")
        deepest = max((len(place) for place, _ in below), default=0)
        if len(path) + deepest > MAX_DEPTH:
            raise UserError("is nested too deeply", self._at(path, line), f"at most {MAX_DEPTH} levels")
        for place, at in below:
            self.source.lines[(*path, *place)] = at
            self.order.append((*path, *place))
        return _copy(value)

    def _mapping(self, loader: Any, path: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := loader.get_event(), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            # Names are text however they look: a data set may be called 2024.
            key = event.value if isinstance(event, yaml.ScalarEvent) else None
            if not isinstance(key, str) or key == "<<":
                raise UserError("a key must be plain text", where=self._at(path, line), fix="write it out")
            here = (*path, key)
            if found := hidden(key):
                raise UserError(f"the key holds the character {found}", where=self._at(here, line), fix="take it out")
            if key in values:
                first = self.source.lines[here]
                what = f"{key!r} is given twice, first in line {first}"
                raise UserError(what, where=self._at(here, line), fix="keep one of the two")
            self.source.lines[here] = line
            values[key] = self._value(loader, loader.get_event(), here)
        return values

    def _scalar(self, loader: Any, event: Any, path: Place, line: int) -> Any:
        text = event.value
        tag = event.tag
        if tag is None or tag == "!":
            tag = loader.resolve(yaml.ScalarNode, text, event.implicit)
        name = tag.rpartition(":")[2] if tag.startswith("tag:yaml.org,2002:") else tag
        if name == "null":
            return None
        if name == "bool":
            return text.lower() == "true"
        if name in ("int", "float"):
            return self._number(text, name, path, line)
        if name != "str":
            raise UserError(f"values of type {tag!r} do not exist here", self._at(path, line), "a plain value, without `!`")
        if found := hidden(text):
            raise UserError(f"the text holds the character {found}", self._at(path, line), "take it out")
        return text

    def _number(self, text: str, name: str, path: Place, line: int) -> int | float:
        fix = "a finite number of at most 64 bits; put quotes around what is text"
        try:
            # Decimal whatever the first digit: 010 is ten.
            number = (
                int(text)
                if name == "int" and len(text) < 30
                else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            )
        except ValueError:
            raise UserError(f"{text[:40]!r} is no number", self._at(path, line), fix) from None
        if not math.isfinite(number) or (name == "int" and not -(2**63) <= number < 2**64):
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            raise UserError(f"found {shown}, which is not a number that counts anything", self._at(path, line), fix)
        return number

    def _at(self, path: Place, line: int) -> str:
        name = f"{self.source.name}: {dotted(path)}" if path else self.source.name
        return f"{name} (line {line})"


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
