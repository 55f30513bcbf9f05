"""The benchmarks that a grid may name: what they measure, the harness tasks behind them, and the metric that counts.

Declarations only: the tasks themselves are lm-evaluation-harness YAMLs (the harness' own, or ours in
`cft_ray/evaluation/tasks`).
"""

from typing import Literal

from pydantic import Field

from cft_ray.grid.settings import GenerationSettings, Settings


class Benchmark(Settings):
    """One benchmark."""

    ability: Literal["TA", "LA"] = Field(description="task ability or language ability")
    tasks: dict[str, str] = Field(description="language -> harness task or group")
    metric: str = Field(description="harness metric shown in the results, between 0 and 1")
    generation: GenerationSettings = GenerationSettings()
    data: str | None = Field(default=None, description="toy-world data set that holds its items; None: the harness loads them")


BENCHMARKS: dict[str, Benchmark] = {}
