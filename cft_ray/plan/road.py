"""What a cell walks by: the models on its road, and the data that they read. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from cft_ray.grid.cells import Variant
from cft_ray.grid.settings import Template
from cft_ray.models.limits import Limits
from cft_ray.plan.stage import Stage
from cft_ray.strategies.base import ModelSource


@dataclass(frozen=True, eq=False)
class Model:
    """A model on a cell's road."""

    source: ModelSource
    taught: Template | None
    """in whose words it was last taught; None: a checkpoint that does not say"""
    label: str
    limits: Limits
    """of the checkpoint that it comes from"""


@dataclass(frozen=True, eq=False)
class Road:
    """One cell's way from the base to Phase 2."""

    variant: Variant
    base: Model
    phase1: Model
    phase2: Model
    data: Stage
    """the Phase 2 data set"""
    replay: Stage | None
    """the generation that the cell's strategy reads"""
    tuned: Callable[[str], Model]
    """data set -> the base tuned on it as in Phase 1; checkpoint -> that checkpoint"""
