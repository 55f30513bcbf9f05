"""A grid's file as plain values, and what ``--set`` changes in them; what never belongs into a grid is refused."""

import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cft_ray.errors import UserError
from cft_ray.grid.tree import Place, Source, Tree, dotted

MAX_BYTES = 1 << 20
_SECRET = re.compile(
    r"(^|[_.-])(password|passwd|secret|secret_key|api_?key|access_key|(access|api|auth|bearer|hf|hub)_?token)$|^token$"
)
_CREDENTIALS = re.compile(r"^[a-z][a-z0-9+]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)


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
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            what = "this is a folder" if stat.S_ISDIR(status.st_mode) else "this is no regular file"
            raise UserError(what, where=source.name, fix="name a grid file, or `-` to read standard input")
        if status.st_size > MAX_BYTES:
            raise UserError(
                f"{status.st_size} bytes are too many for a grid", where=source.name, fix=f"at most {MAX_BYTES} bytes"
            )
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such file", where=source.name, fix="name a grid file, e.g. grids/smoke.yaml") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        what = f"the byte {error.object[error.start]:#04x} is no UTF-8"
        raise UserError(what, where=f"{source.name} (line {line})", fix="a YAML file in UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=source.name, fix="a readable YAML file in UTF-8") from None
    return parse(text, source, sets)


def parse(text: str, source: Source, sets: Sequence[str] = ()) -> tuple[dict[str, Any], Source]:
    """As `read`, for text that is already here."""
    values = Tree(source).load(text)
    if not isinstance(values, dict):
        raise UserError(f"a grid is a mapping, not {_kind(values)}", where=source.name, fix="start with `name:`")
    for change in sets:
        _set(values, change, source)
    _refuse_secrets(values, (), source)
    return values, source


def _set(values: dict[str, Any], change: str, source: Source) -> None:
    path, equals, text = change.partition("=")
    where = f"--set {change}"
    if not equals or not path.strip():
        raise UserError("is not path=value", where=where, fix="e.g. --set training.learning_rate=1e-5")
    value = Tree(Source(where)).load(text)
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


def _refuse_secrets(value: Any, path: Place, source: Source) -> None:
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
