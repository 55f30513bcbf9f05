"""SHA-256 over everything that decides a stage's result.

The value is hashed in one canonical JSON form: keys sorted, no spaces, floats in their shortest round-trip form. What
has no stable form (a callable, a set, NaN, an object) raises instead of falling back to ``str()``.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any

from cft_ray.errors import UserError


def fingerprint(kind: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The 64 hexadecimal digits that name a stage's artifact.

    Args:
        kind: stage kind, e.g. ``finetune``.
        version: the kind's version number.
        settings: the spec's identity (`Spec.identity`).
        inputs: role -> fingerprint of the input stage.

    Raises:
        UserError: a setting has no stable form.
    """
    return fingerprint_of(kind, version, canonical(settings), inputs)


def fingerprint_of(kind: str, version: int, settings: str, inputs: Mapping[str, str]) -> str:
    """As `fingerprint`, for settings that are in canonical form already: many stages share them."""
    roles = ",".join(f"{_text(role)}:{_text(inputs[role])}" for role in sorted(inputs))
    body = f'{{"inputs":{{{roles}}},"kind":{_text(kind)},"settings":{settings},"version":{version:d}}}'
    return hashlib.sha256(body.encode()).hexdigest()


def canonical(settings: Mapping[str, Any]) -> str:
    """The one JSON text of these settings.

    Raises:
        UserError: a setting has no stable form.
    """
    return _ENCODER.encode(_stable(settings, "settings"))


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_text = encode_basestring


def _stable(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{value} has no stable form", where=where, fix="use a finite number")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"key {key!r} is not text", where=where, fix="use text keys")
        return {key: _stable(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise UserError(
        f"a {type(value).__name__} has no stable form and cannot be part of a fingerprint",
        where=where,
        fix="use numbers, text, booleans, lists or mappings",
    )
