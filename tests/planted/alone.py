"""A stage's world without an executor (`cft_ray.stages.context.StageContext`): folders in, a folder out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cft_ray.grid.loggers import Logger
from cft_ray.plan.stage import Stage


@dataclass
class Alone:
    """What is not given is not there: asking for it is a `KeyError`. A Ray task can be sent it."""

    root: Path
    stage: Stage
    inputs: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, str | Path] = field(default_factory=dict)
    summaries: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    loggers: tuple[Logger, ...] = ()
    attempt: int = 1
    host: str | None = None
    shown: list[dict[str, Any]] = field(default_factory=list)
    """what the stage said of its progress in this process"""

    def __post_init__(self) -> None:
        self.output, self.scratch = self.root / "output", self.root / "scratch"
        self.checkpoints = str(self.root / "checkpoints")
        for folder in (self.output, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)

    def input(self, role: str) -> Path:
        return self.inputs[role]

    def summary(self, role: str) -> dict[str, Any]:
        return self.summaries[role]

    def model(self, role: str) -> str:
        return str(self.models[role])

    def prove(self) -> None:
        pass

    def report(self, table: str, rows: Sequence[dict[str, Any]], sequence: int) -> None:
        raise AssertionError("rows are left in the artifact")

    def progress(self, **values: Any) -> None:
        self.shown.append(values)
