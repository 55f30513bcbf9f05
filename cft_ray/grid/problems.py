"""pydantic's complaints about a grid, said as `UserError`: where in the file, what is wrong, what would be right."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from cft_ray.errors import UserError
from cft_ray.grid.tree import Source

_LONGEST = 60
"""characters of a value that a message repeats"""


def nearest(name: str, known: Sequence[str]) -> str:
    """What to write instead of ``name``: the nearest known names, or all of them."""
    if not known:
        return "nothing may be written here"
    folded = {item.casefold(): item for item in known}
    close = get_close_matches(name.casefold(), folded, n=2, cutoff=0.55)
    return f"did you mean {' or '.join(folded[item] for item in close)}?" if close else f"known: {', '.join(known)}"


def as_user_error(
    error: ValidationError, model: type[BaseModel], raw: Any, source: Source, at: tuple[str | int, ...] = ()
) -> UserError:
    """The first of pydantic's complaints, with the number of the others.

    Args:
        error: raised while ``raw`` was validated.
        model: what it was validated as.
        raw: the values as written.
        source: names file and line.
        at: where ``raw`` lies inside the grid.
    """
    # A misspelt key is also a missing one; the spelling is what is to be mended.
    complaints = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first = complaints[0]
    path = _inside(raw, first["loc"], missing=first["type"] == "missing")
    what, fix = _said(first, model, path)
    if len(complaints) > 1:
        what += f" (and {len(complaints) - 1} more to mend)"
    return UserError(what, where=source.where((*at, *path)), fix=fix)


def refuse_truths(annotation: Any, value: Any, source: Source, at: tuple[str | int, ...]) -> None:
    """Refuse ``true`` and ``false`` where a number stands, which pydantic would take for 1 and 0.

    Args:
        annotation: of a model or a field.
        value: as written.
        source: names file and line.
        at: where ``value`` lies inside the grid.

    Raises:
        UserError: naming the place.
    """
    members = _members(annotation)
    if isinstance(value, bool):
        items = [get_args(member)[0] for member in members if get_origin(member) is list]
        members += [member for item in items for member in _members(item)]  # a bare value stands for a list of it
        if {int, float} & set(members) and bool not in members:
            raise UserError(f"found {str(value).lower()} where a number stands", where=source.where(at), fix="a number")
        return
    for member in members:
        if isinstance(value, dict) and isinstance(member, type) and issubclass(member, BaseModel):
            for key, item in value.items():
                if key in member.model_fields:
                    refuse_truths(_annotation(member, key), item, source, (*at, key))
        elif isinstance(value, dict) and get_origin(member) is dict:
            for key, item in value.items():
                refuse_truths(get_args(member)[1], item, source, (*at, key))
        elif isinstance(value, list) and get_origin(member) in (list, tuple):
            for index, item in enumerate(value):
                refuse_truths(get_args(member)[0], item, source, (*at, index))


def checked(model: type[BaseModel], raw: dict[str, Any], source: Source, at: tuple[str | int, ...]) -> dict[str, Any]:
    """Some of a model's settings, each by itself valid, as the model would hold them.

    Raises:
        UserError: an unknown key, a wrong value.
    """
    return {key: one(model, key, value, source, (*at, key)) for key, value in raw.items()}


def one(model: type[BaseModel], key: str, value: Any, source: Source, at: tuple[str | int, ...]) -> Any:
    """One setting's value as ``model`` would hold it.

    Raises:
        UserError: an unknown key, a wrong value.
    """
    if key not in model.model_fields:
        raise UserError(f"unknown key {key!r}", where=source.where(at), fix=nearest(key, list(model.model_fields)))
    refuse_truths(_annotation(model, key), value, source, at)
    try:
        return adapter(model, key).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        what, fix = _said(first, model, ())
        raise UserError(what, where=source.where(at), fix=fix) from None


_adapters: dict[tuple[type[BaseModel], str], TypeAdapter[Any]] = {}


def adapter(model: type[BaseModel], key: str) -> TypeAdapter[Any]:
    """What validates one field of a model by itself, its limits included."""
    if (model, key) not in _adapters:
        _adapters[model, key] = TypeAdapter(_annotation(model, key))
    return _adapters[model, key]


def _annotation(model: type[BaseModel], key: str) -> Any:
    field = model.model_fields[key]
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _inside(raw: Any, loc: Sequence[str | int], *, missing: bool) -> tuple[str | int, ...]:
    """The part of pydantic's location that exists in the file (it also names union members and validators)."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        if isinstance(raw, dict) and part in raw:  # noqa: SIM114 - apart for the type checker
            raw = raw[part]
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        elif missing and index == len(loc) - 1:
            return (*path, part)
        else:
            continue
        path.append(part)
    return tuple(path)


def _said(complaint: Any, model: type[BaseModel], path: tuple[str | int, ...]) -> tuple[str, str | None]:
    kind, message = complaint["type"], complaint["msg"]
    if kind == "extra_forbidden":
        return f"unknown key {path[-1]!r}", nearest(str(path[-1]), _known_keys(model, path[:-1]))
    if kind == "missing":
        return f"{path[-1]!r} is missing", f"write `{path[-1]}: …`"
    if kind == "cft_ray":
        return complaint["ctx"]["what"], complaint["ctx"]["fix"]
    if kind in ("value_error", "assertion_error"):  # of a strategy of the user's own
        return message.partition(", ")[2] or message, "a value that it takes"
    value = complaint["input"]
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    if isinstance(value, str) and len(value) > _LONGEST:
        shown = f"{value[:_LONGEST]!r}…"
    if kind == "string_pattern_mismatch":
        return f"{shown} cannot be a name", "a name without spaces, slashes, brackets, commas, colons, = and *"
    return f"found {shown}", message[0].lower() + message[1:]


def _known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    found: Any = model
    for part in path:
        found = _below(found, part)
    found = next((item for item in _members(found) if isinstance(item, type) and issubclass(item, BaseModel)), None)
    return list(found.model_fields) if found is not None else []


def _below(annotation: Any, part: str | int) -> Any:
    for item in _members(annotation):
        if isinstance(item, type) and issubclass(item, BaseModel):
            if part in item.model_fields:
                return item.model_fields[str(part)].annotation
        elif get_origin(item) is dict:
            return get_args(item)[1]
        elif get_origin(item) in (list, tuple):
            return get_args(item)[0]
    return None


def _members(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without `Annotated` and unions around them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    arguments = get_args(annotation)
    if get_origin(annotation) is Union or (arguments and type(annotation).__name__ == "UnionType"):
        return [member for argument in arguments for member in _members(argument)]
    return [annotation]
