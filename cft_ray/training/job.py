"""What one training is told: a JSON document that every rank reads."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from cft_ray.grid.loggers import Logger
from cft_ray.grid.settings import Template, TrainingSettings
from cft_ray.plan.specs import StrategyRef


class Job(BaseModel):
    """One training.

    Paths are local to each rank's machine; `checkpoints` alone may be a URI of a storage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Hugging Face folder that training starts from")
    rows: str = Field(description="Parquet file of canonical rows, the strategy's changes already made")
    template: Template
    training: TrainingSettings
    seed: int = 0
    strategy: StrategyRef | None = None
    inputs: dict[str, str] = Field(default_factory=dict, description="role -> folder of an artifact that the strategy reads")
    output: str = Field(description="folder that gets `model/` and `tables/steps.parquet`; written by rank 0")
    scratch: str = Field(description="folder for intermediate files")
    checkpoints: str = Field(description="folder or URI of mid-run state")
    attempt: int = Field(default=1, ge=1, description="number of this attempt; a later one's checkpoints are left alone")
    label: str = Field(default="the training", description="what messages call it")
    data: str = Field(default="", description="name of its data set in the grid, for messages")
    allow_left_out: float = Field(default=1.0, description="share of its rows that may be left out in encoding")
    fingerprint: str = Field(default="", description="of the stage; entered into the step rows and checked on resume")
    loggers: tuple[Logger, ...] = Field(default=(), description="see `loggers.build`")

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_text(self.model_dump_json(indent=2), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Inverse of :meth:`write`."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
