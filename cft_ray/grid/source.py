"""A grid's file as plain values that remember their lines, and what ``--set`` changes in them.

YAML is read as YAML 1.2 reads it: ``no`` is a language code and not *false*, ``1e-5`` is a number. The safe
constructor's types alone exist; a key written twice is an error instead of the last one winning; size, depth and the
growth by aliases are limited, so that a hostile file costs nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cft_ray.errors import UserError

MAX_BYTES = 1 << 20
MAX_VALUES = 200_000
MAX_DEPTH = 40
_SECRET = re.compile(
    r"(^|[_.-])(password|passwd|secret|secret_key|api_?key|access_key|(access|api|auth|bearer|hf|hub)_?token)$|^token$"
)
_CREDENTIALS = re.compile(r"^[a-z][a-z0-9+]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)

Path_ = tuple[str | int, ...]
"""Of a value inside the grid."""


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's core types."""

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


# Decimal whatever the first digit; the base class takes 010 for octal.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


@dataclass
class Source:
    """Where the values of a grid come from.

    Args:
        name: the file as the user named it.
        lines: path inside the grid -> line in the file, from 1.
        changed: paths set on the command line.
    """

    name: str
    lines: dict[Path_, int] = field(default_factory=dict)
    changed: set[Path_] = field(default_factory=set)

    def where(self, path: Sequence[str | int]) -> str:
        """``file: path.in.file (line N)``; the line is that of the nearest enclosing value that stands in the file."""
        whole = tuple(path)
        text = f"{self.name}: {dotted(whole)}" if whole else self.name
        for length in range(len(whole), -1, -1):
            if whole[:length] in self.changed:
                return f"{text} (--set)"
            if length and (line := self.lines.get(whole[:length])):
                return f"{text} (line {line})"
        return text


def dotted(path: Sequence[str | int]) -> str:
    """``pairs[0].phase1`` for ``("pairs", 0, "phase1")``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read(path: str | Path, sets: Sequence[str] = ()) -> tuple[dict[str, Any], Source]:
    """The values of a grid file with ``--set`` applied, and their source.

    Args:
        path: of a YAML file.
        sets: ``path=value`` each: a dotted path (list items by index or by their name), a value in YAML.

    Raises:
        UserError: no such file, not YAML, a key twice, too large, a secret, a ``--set`` that fits nowhere.
    """
    source = Source(str(path))
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{size} bytes are too many for a grid", where=source.name, fix=f"at most {MAX_BYTES} bytes")
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such file", where=source.name, fix="name a grid file, e.g. grids/smoke.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=source.name, fix="a readable YAML file in UTF-8") from None
    return parse(text, source, sets)


def parse(text: str, source: Source, sets: Sequence[str] = ()) -> tuple[dict[str, Any], Source]:
    """As `read`, for text that is already here."""
    values = _Tree(source).load(text)
    if not isinstance(values, dict):
        raise UserError(f"a grid is a mapping, not {_kind(values)}", where=source.name, fix="start with `name:`")
    for change in sets:
        _set(values, change, source)
    _refuse_secrets(values, (), source)
    return values, source


class _Tree:
    """YAML nodes to values: counts them, notes their lines, refuses a key given twice."""

    def __init__(self, source: Source) -> None:
        self.source, self.values = source, 0

    def load(self, text: str) -> Any:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else self._value(loader, node, ())
        except RecursionError:
            raise UserError("is nested too deeply", where=self.source.name, fix=f"at most {MAX_DEPTH} levels") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f" (line {mark.line + 1})" if mark else ""
            problem = error.problem or error.context or "cannot be parsed"
            raise UserError(f"not YAML: {problem}", where=f"{self.source.name}{line}", fix="mend the line named here") from None
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"not YAML: {error}", where=self.source.name, fix="a YAML file") from None
        finally:
            loader.dispose()

    def _value(self, loader: _Loader, node: yaml.Node, path: Path_) -> Any:
        self.values += 1
        self.source.lines.setdefault(path, node.start_mark.line + 1)
        if self.values > MAX_VALUES:
            raise UserError("its aliases unfold to too many values", where=self.source.name, fix=f"at most {MAX_VALUES}")
        if len(path) > MAX_DEPTH:
            raise UserError("is nested too deeply", where=self.source.name, fix=f"at most {MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(loader, item, (*path, index)) for index, item in enumerate(node.value)]
        return loader.construct_object(node)

    def _mapping(self, loader: _Loader, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            # Names are text however they look: a data set may be called 2024.
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or key == "<<":
                raise UserError("a key must be plain text", where=f"{self.source.where(path)} (line {line})", fix="write it out")
            here = (*path, key)
            if key in values:
                first = self.source.lines[here]
                raise UserError(
                    f"{key!r} is given twice, first in line {first}",
                    where=f"{self.source.name}: {dotted(here)} (line {line})",
                    fix="keep one of the two",
                )
            self.source.lines[here] = line
            values[key] = self._value(loader, value_node, here)
        return values


def _set(values: dict[str, Any], change: str, source: Source) -> None:
    path, equals, text = change.partition("=")
    where = f"--set {change}"
    if not equals or not path.strip():
        raise UserError("is not path=value", where=where, fix="e.g. --set training.learning_rate=1e-5")
    value = _Tree(Source(where)).load(text)
    node: Any = values
    done: list[str | int] = []
    rest = path.strip().replace("[", ".").replace("]", "").split(".")
    while rest:
        key, rest = _step(node, rest, where, done)
        done.append(key)
        if not rest:
            break
        below = node[key] if isinstance(key, int) else node.get(key)
        if isinstance(below, str) and isinstance(key, int):
            below = {"name": below}  # a strategy or benchmark that is so far given by its name alone
        if below is None:
            below = {}
        if not isinstance(below, dict | list):
            raise UserError(f"{dotted(done)} is {_kind(below)}, nothing lies below it", where=where, fix="set it itself")
        node[key] = below
        node = below
    node[done[-1]] = value
    changed = tuple(done)
    source.changed.add(changed)
    for path in [path for path in source.lines if path[: len(changed)] == changed]:
        del source.lines[path]  # what stood there is gone


def _step(node: Any, rest: list[str], where: str, done: list[str | int]) -> tuple[str | int, list[str]]:
    if isinstance(node, dict):
        for length in range(len(rest), 1, -1):  # names may hold dots
            if (key := ".".join(rest[:length])) in node:
                return key, rest[length:]
        return rest[0], rest[1:]
    names = [item.get("name") if isinstance(item, dict) else item for item in node]
    for length in range(len(rest), 0, -1):
        if (name := ".".join(rest[:length])) in names:
            return names.index(name), rest[length:]
    if rest[0].isdigit() and int(rest[0]) < len(node):
        return int(rest[0]), rest[1:]
    known = ", ".join(str(name) for name in names if name is not None)
    raise UserError(
        f"{dotted(done)} has no item {rest[0]!r}",
        where=where,
        fix=f"an index from 0 to {len(node) - 1}" + (f", or one of {known}" if known else ""),
    )


def _refuse_secrets(value: Any, path: Path_, source: Source) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str) and item and _SECRET.search(key.lower()):
                raise UserError(
                    "a secret does not belong into a grid",
                    where=source.where((*path, key)),
                    fix="take it out and set the environment variable of the service (HF_TOKEN, WANDB_API_KEY, AWS_…)",
                )
            _refuse_secrets(item, (*path, key), source)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_secrets(item, (*path, index), source)
    elif isinstance(value, str) and _CREDENTIALS.match(value):
        raise UserError(
            "a user name and password do not belong into a grid",
            where=source.where(path),
            fix="an address without them; give them by the environment",
        )


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)
