"""The interface of a mitigation strategy.

A strategy is a frozen pydantic model: its fields are its settings in the YAML and part of the fingerprint. It acts at
two times. While *planning* it is pure and names the further stages that its training reads. While *training* it may
change the rows, the model and what is exported. Everything has a neutral default, so a strategy overrides only what
it does. A user's own strategy is a subclass named by import path in the grid.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from cft_ray.grid.settings import EngineSettings, ReplaySampling, Template, TrainingSettings
from cft_ray.plan.specs import Checkpoint
from cft_ray.plan.stage import Resources, Stage

if TYPE_CHECKING:
    import pyarrow as pa
    import torch


@dataclass(frozen=True)
class ModelSource:
    """A model in the plan: the stage that trains it, or the checkpoint that the grid names (exactly one)."""

    stage: Stage | None = None
    checkpoint: Checkpoint | None = None

    def attach(self, role: str, inputs: dict[str, str], checkpoints: dict[str, Checkpoint]) -> None:
        """Enter this model under ``role`` into a stage's inputs or its spec's checkpoints, whichever it is."""
        if self.stage is not None:
            inputs[role] = self.stage.fingerprint
        elif self.checkpoint is not None:
            checkpoints[role] = self.checkpoint


@dataclass(frozen=True)
class Phase2:
    """What a strategy may build its stages from."""

    base: ModelSource
    phase1: ModelSource
    data: Stage
    """the Phase 2 data set"""
    english: Stage | None
    """the Phase 2 data set's English counterpart; None where the grid names none"""
    template: Template
    sampling: ReplaySampling
    training: TrainingSettings
    """of the Phase 2 training, the strategy's own overrides included"""
    seed: int
    label: str
    resources: Mapping[str, Resources]
    """by stage kind"""
    engine: EngineSettings = field(default_factory=EngineSettings)
    """as evaluation has them, so that replay can share its engine"""


class Strategy(BaseModel):
    """Base class; also what ``none`` does."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: ClassVar[int] = 1
    uses_phase1_data: ClassVar[bool] = False
    """breaks the setting's first constraint: Phase 2 cannot use Phase 1's data"""
    holds_phase1_weights: ClassVar[bool] = False
    """breaks the second: Phase 1's weights cannot lie on the GPU beside those in training"""

    def stages(self, phase2: Phase2) -> dict[str, Stage]:
        """Role -> further stage whose artifact the Phase 2 training reads. Pure.

        Raises:
            UserError: the grid lacks what the strategy needs (e.g. an English counterpart).
        """
        return {}

    def rows(self, rows: "pa.Table", inputs: Mapping[str, Path], seed: int) -> "pa.Table":
        """The rows to train on: canonical rows of the Phase 2 data set in, the same schema out."""
        return rows

    def prepare(self, model: "torch.nn.Module", inputs: Mapping[str, Path], seed: int) -> "torch.nn.Module":
        """Change the model before the optimizer exists (freeze, wrap). Parameters may be ZeRO-3 partitioned."""
        return model

    def exported(self, model: "torch.nn.Module") -> Iterator[tuple[str, "torch.Tensor"]]:
        """(name, whole tensor) of every weight of the finished Hugging Face model, one gathered at a time.

        Every rank iterates; the default gathers each parameter under its own name.
        """
        from cft_ray.training.export import gathered_parameters

        yield from gathered_parameters(model)

    def facts(self, model: "torch.nn.Module") -> dict[str, Any]:
        """Small JSON for the manifest, e.g. which layers were frozen. Called after `prepare`."""
        return {}
