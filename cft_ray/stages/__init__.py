"""One module a kind of stage, found by its name and imported only where it runs."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from cft_ray.plan.specs import SPECS
from cft_ray.stages.context import StageContext


def runner(kind: str) -> Callable[[StageContext], dict[str, Any]]:
    """The ``run`` function of a stage kind; the module carries torch, vLLM … and is imported here."""
    if kind not in SPECS:
        raise ValueError(f"unknown stage kind {kind!r}")
    return import_module(SPECS[kind].module or f"cft_ray.stages.{kind}").run
