"""The grid's strategies and benchmarks, from their names to what they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from cft_ray.errors import UserError
from cft_ray.grid.benchmarks import BENCHMARKS, Benchmark
from cft_ray.grid.problems import as_user_error, checked, nearest
from cft_ray.grid.schema import Grid
from cft_ray.grid.sections import BenchmarkChoice, StrategyChoice
from cft_ray.grid.settings import GenerationSettings, Template, TrainingSettings
from cft_ray.grid.sweep import Axis, split
from cft_ray.strategies import build, named, resolve
from cft_ray.strategies.base import Strategy


@dataclass(frozen=True)
class ChosenStrategy:
    """A strategy of the grid: its class, what is fixed and what is swept."""

    name: str
    use: str
    settings: dict[str, Any]
    axes: tuple[Axis, ...]
    training: dict[str, Any]
    training_axes: tuple[Axis, ...]
    path: tuple[str | int, ...]

    def build(self, grid: Grid, swept: dict[str, Any]) -> Strategy:
        """The strategy with one value of each of its swept settings."""
        return build(self.use, self.settings | swept, where=grid.source.where(self.path))


@dataclass(frozen=True)
class ChosenBenchmark:
    """A benchmark of the grid with its settings merged."""

    name: str
    benchmark: Benchmark
    generation: GenerationSettings
    limit: int | None
    template: Literal["task", "model"] | Template
    use: str
    """the known benchmark that it is; its own name where it is declared in place"""

    def of(self, section: Mapping[str, Any]) -> str | None:
        """The key of a section by benchmark (`data`, `revisions`) that concerns it: its own name, or the known one's."""
        return next((name for name in (self.name, self.use) if name in section), None)


def chosen_strategies(grid: Grid) -> list[ChosenStrategy]:
    """The grid's strategies, in its order.

    Raises:
        UserError: unknown strategy or setting, wrong value.
    """
    return [_strategy(grid, choice, ("strategies", index)) for index, choice in enumerate(grid.strategies)]


def chosen_benchmarks(grid: Grid) -> list[ChosenBenchmark]:
    """The grid's benchmarks, in its order.

    Raises:
        UserError: unknown benchmark or setting, an incomplete declaration.
    """
    path = ("evaluation", "benchmarks")
    return [_benchmark(grid, choice, (*path, index)) for index, choice in enumerate(grid.evaluation.benchmarks)]


def _strategy(grid: Grid, choice: StrategyChoice, path: tuple[str | int, ...]) -> ChosenStrategy:
    where = grid.source.where((*path, "use") if choice.use else path)
    use, settings = named(choice.use or choice.name, where=where)
    fixed, axes = split(resolve(use, where=where), choice.settings, grid.source, path)
    training, training_axes = split(TrainingSettings, choice.training, grid.source, (*path, "training"))
    settings = {key: value for key, value in settings.items() if key not in dict(axes)} | fixed
    return ChosenStrategy(choice.name, use, settings, axes, training, training_axes, path)


def _benchmark(grid: Grid, choice: BenchmarkChoice, path: tuple[str | int, ...]) -> ChosenBenchmark:
    evaluation = grid.evaluation
    for_all = checked(GenerationSettings, evaluation.generation, grid.source, ("evaluation", "generation"))
    own = checked(GenerationSettings, choice.generation, grid.source, (*path, "generation"))
    declared = {key: value for key in ("ability", "tasks", "metric", "data") if (value := getattr(choice, key)) is not None}
    known = BENCHMARKS.get(choice.use or choice.name)
    if known is not None:
        benchmark = known.model_copy(update=declared)
    elif choice.use is not None or not declared:
        name = choice.use or choice.name
        raise UserError(
            f"there is no benchmark {name!r}",
            where=grid.source.where((*path, "use") if choice.use else path),
            fix=f"{nearest(name, list(BENCHMARKS))}; or declare it here with ability, tasks and metric",
        )
    else:
        try:
            benchmark = Benchmark(**declared)
        except ValidationError as error:
            raise as_user_error(error, Benchmark, declared, grid.source, path) from None
    benchmark = benchmark.model_copy(update={"tasks": _languages(grid, choice, benchmark, path)})
    generation = benchmark.generation.model_copy(update=for_all | own)
    limit = choice.limit or evaluation.limit
    template = choice.template or evaluation.template
    return ChosenBenchmark(choice.name, benchmark, generation, limit, template, choice.use or choice.name)


def _languages(grid: Grid, choice: BenchmarkChoice, benchmark: Benchmark, path: tuple[str | int, ...]) -> dict[str, str]:
    """The tasks of the languages that the grid asks for; the benchmark's own where it does not say."""
    if choice.languages is None:
        return benchmark.tasks
    there = benchmark.tasks | benchmark.also
    for index, language in enumerate(choice.languages):
        if language not in there:
            raise UserError(
                f"{choice.name} has no language {language!r}",
                where=grid.source.where((*path, "languages", index)),
                fix=f"one of {', '.join(sorted(there))}; or give its task under `tasks`",
            )
    return {language: there[language] for language in choice.languages}
