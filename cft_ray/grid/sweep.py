"""Lists of values for a setting: what is swept, and the combinations.

A list is a sweep unless the setting itself takes lists: LoRA's ``target_modules: [q_proj, v_proj]`` is one value, and
``target_modules: [[q_proj], [q_proj, v_proj]]`` are two.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import BaseModel, ValidationError

from cft_ray.errors import UserError
from cft_ray.grid.problems import adapter, one
from cft_ray.grid.tree import Source

Axis = tuple[str, tuple[Any, ...]]
"""A setting and its values."""


def split(
    model: type[BaseModel], raw: Mapping[str, Any], source: Source, at: tuple[str | int, ...]
) -> tuple[dict[str, Any], tuple[Axis, ...]]:
    """The settings that are fixed, and those that are swept; each value checked by itself.

    Args:
        model: holds the settings.
        raw: some of its settings as written.
        source: names file and line.
        at: where ``raw`` lies inside the grid.

    Raises:
        UserError: an unknown key, a wrong value, an empty list, a value twice.
    """
    fixed: dict[str, Any] = {}
    axes: list[Axis] = []
    for key, value in raw.items():
        here = (*at, key)
        if not isinstance(value, list) or _takes(model, key, value):
            fixed[key] = one(model, key, value, source, here)
            continue
        if not value:
            raise UserError("an empty list sweeps nothing", where=source.where(here), fix="give at least one value")
        values = [one(model, key, item, source, (*here, index)) for index, item in enumerate(value)]
        before: set[str] = set()
        for index, item in enumerate(values):
            if (text := repr(item)) in before:
                raise UserError(f"{item!r} is swept twice", where=source.where((*here, index)), fix="give each value once")
            before.add(text)
        if len(values) == 1:
            fixed[key] = values[0]
        else:
            axes.append((key, tuple(values)))
    return fixed, tuple(axes)


def combinations(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Every choice of one value per axis; the last axis turns fastest."""
    names = [name for name, _ in axes]
    return [dict(zip(names, values, strict=True)) for values in product(*(values for _, values in axes))]


def _takes(model: type[BaseModel], key: str, value: list[Any]) -> bool:
    if key not in model.model_fields:
        return False
    try:
        adapter(model, key).validate_python(value)
    except ValidationError:
        return False
    return True
