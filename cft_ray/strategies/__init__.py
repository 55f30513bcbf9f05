"""The registry of mitigation strategies: from what a grid writes to a checked strategy object.

Three spellings lead to a class. A *study name* (``GR_5``) stands for a registered key and settings; a *registered key*
(``GR``) names one of ours; an *import path* (``package.module:Class``) names a user's own. Pure: importing a strategy's
module loads neither torch nor Ray, so planning may call everything here.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from cft_ray.errors import UserError
from cft_ray.plan.specs import StrategyRef
from cft_ray.strategies.base import ModelSource, Phase2, Strategy

__all__ = ["REGISTRY", "ModelSource", "Phase2", "Strategy", "build", "load", "named", "reference", "resolve"]

REGISTRY: dict[str, str] = {
    "none": "cft_ray.strategies.base:Strategy",
    "LF_H1": "cft_ray.strategies.freezing:RandomLayers",
    "LF_H2": "cft_ray.strategies.freezing:MostChangedHeads",
    "GR": "cft_ray.strategies.replay:GenerativeReplay",
    "ER": "cft_ray.strategies.replay:EnglishReplay",
    "LoRA": "cft_ray.strategies.lora:LowRank",
}
"""Registered key -> import path. Adding a strategy is one module and one line here."""

STUDY_NAMES = ("none", "LF_H1", "LF_H2", "GR_5", "GR_10", "ER_10", "LoRA")
"""The seven strategies of the study, in the order of its tables."""

_REPLAY_NAME = re.compile(r"(GR|ER)_(\d{1,3})")


def named(name: str, *, where: str | None = None) -> tuple[str, dict[str, Any]]:
    """What a bare name in a grid stands for.

    Args:
        name: a study name, ``GR_{n}`` or ``ER_{n}`` (n per cent of the Phase 2 rows), a registered key or an import path.
        where: place in the grid, for the message.

    Returns:
        ``use`` and settings, e.g. ``("GR", {"ratio": 0.05})`` for ``GR_5``.

    Raises:
        UserError: unknown name.
    """
    if replay := _REPLAY_NAME.fullmatch(name):
        return replay[1], {"ratio": int(replay[2]) / 100}
    if name in REGISTRY or ":" in name:
        return name, {}
    raise _unknown(name, where)


def resolve(use: str, *, where: str | None = None) -> type[Strategy]:
    """The class behind a registered key or an import path ``package.module:Class``.

    Raises:
        UserError: unknown key, module that cannot be imported, class that is missing or no `Strategy`.
    """
    path = REGISTRY.get(use, use)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        raise _unknown(use, where)
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise UserError(f"{use!r} is no import path", where=where, fix="`package.module:Class`, from the top")
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a module of the user's own raises
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ImportError) else str(error)
        raise UserError(
            f"strategy {use!r} cannot be imported: {reason}",
            where=where,
            fix=f"make the module {module_name!r} importable (installed, or its folder on PYTHONPATH)",
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise UserError(
            f"module {module_name!r} has no class {class_name!r}", where=where, fix=_nearest(class_name, list(vars(module)))
        )
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UserError(
            f"{use!r} is no strategy", where=where, fix="name a subclass of cft_ray.strategies.Strategy after the colon"
        )
    return found


def build(use: str, settings: Mapping[str, Any], *, where: str | None = None) -> Strategy:
    """A strategy with its settings checked.

    Args:
        use: registered key or import path.
        settings: field -> value, as in the YAML.
        where: place in the grid, for the message.

    Raises:
        UserError: as `resolve`; unknown, missing or wrong settings.
    """
    strategy = resolve(use, where=where)
    try:
        return strategy.model_validate(dict(settings))
    except ValidationError as error:
        raise _wrong_settings(strategy, use, error, where) from None


def reference(strategy: Strategy) -> StrategyRef:
    """How a strategy travels inside a spec: every setting is written out, so a default and its value are one thing.

    Raises:
        UserError: a class that another process could not import (defined inside a function).
    """
    strategy_class = type(strategy)
    path = f"{strategy_class.__module__}:{strategy_class.__qualname__}"
    if "<locals>" in path:
        raise UserError(f"strategy {path} is defined inside a function", fix="define it at the top level of a module")
    use = next((key for key, registered in REGISTRY.items() if registered == path), path)
    return StrategyRef(use=use, version=strategy_class.version, settings=strategy.model_dump(mode="json"))


def load(ref: StrategyRef) -> Strategy:
    """Inverse of :func:`reference`.

    Raises:
        UserError: as `build`; the installed class has another version than the one that was planned with.
    """
    strategy = build(ref.use, ref.settings)
    if strategy.version != ref.version:
        raise UserError(
            f"strategy {ref.use} was planned at version {ref.version}, but version {strategy.version} is installed",
            fix="plan and run with the same code",
        )
    return strategy


def _unknown(name: str, where: str | None) -> UserError:
    names = list(dict.fromkeys([*STUDY_NAMES, *REGISTRY]))
    return UserError(
        f"unknown strategy {name!r}",
        where=where,
        fix=f"{_nearest(name, names)} A class of your own is named by its import path, `package.module:Class`.",
    )


def _nearest(name: str, known: list[str]) -> str:
    folded = {item.casefold(): item for item in known}
    close = get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(folded[item] for item in close)}?" if close else f"known: {', '.join(known)}."


def _wrong_settings(strategy: type[Strategy], use: str, error: ValidationError, where: str | None) -> UserError:
    faults, fixes = [], []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            faults.append(f"unknown setting {key!r}")
            fixes.append(_nearest(key, list(strategy.model_fields)) if strategy.model_fields else "it has no settings")
        elif item["type"] == "missing":
            faults.append(f"setting {key!r} is missing")
            fixes.append(f"give {key}: {strategy.model_fields[key].description}")
        else:
            faults.append(f"{key} = {item['input']!r}" if key else "settings")
            fixes.append(item["msg"])
    return UserError(f"strategy {use}: {'; '.join(faults)}", where=where, fix="; ".join(fixes))
