"""Cells: the product model × pair × strategy × seed × swept settings, less what the filters take out.

Everything that is dear (merging and validating settings) is done once per *variant*, which all seeds share: a grid of
ten thousand cells has a few hundred variants.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pydantic import ValidationError

from cft_ray.errors import UserError
from cft_ray.grid.choices import ChosenStrategy, chosen_strategies
from cft_ray.grid.filters import Filters
from cft_ray.grid.problems import as_user_error
from cft_ray.grid.schema import Grid
from cft_ray.grid.sections import PHASES, Pair
from cft_ray.grid.settings import ReplaySampling, TrainingSettings
from cft_ray.grid.sweep import Axis, combinations, split
from cft_ray.strategies.base import Strategy

Layer = tuple[dict[str, Any], tuple[str | int, ...]]
"""Some training settings, and where the grid gives them."""


@dataclass(frozen=True, eq=False)
class Variant:
    """One strategy on one pair of one model, with one value of every swept setting."""

    name: str
    """``model/phase1→phase2/strategy``"""
    model: str
    pair: Pair
    strategy: str
    implementation: Strategy
    settings: Mapping[str, Any]
    """swept settings only, by their path"""
    phase1: TrainingSettings | None
    """None where phase 1 is a checkpoint"""
    tuning: TrainingSettings
    """of the base on any one data set, as in Phase 1; of settings that this variant does not sweep, the first value"""
    phase2: TrainingSettings
    sampling: ReplaySampling
    given: Mapping[str, TrainingSettings]
    """checkpoint of the model that is trained here -> its training"""
    path: tuple[str | int, ...]
    """of the strategy, for messages"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the results: a variant with a seed."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """``model/phase1→phase2/strategy/seed[/setting=value…]``, stable and unique in its grid."""
        return cell_name(self.variant.name, self.seed, self.variant.settings)


def cell_name(variant: str, seed: int, settings: Mapping[str, Any]) -> str:
    """The name of a cell; a swept value stands as its path and value."""
    name = f"{variant}/{seed}"
    return name + "".join(f"/{path}={value}" for path, value in settings.items()) if settings else name


def cells(grid: Grid) -> list[Cell]:
    """The grid's cells: models, pairs, strategies, swept values and seeds in the file's order, the last fastest.

    Raises:
        UserError: wrong settings; a model without the checkpoint that a pair names; no cell left by the filters.
    """
    found: list[Cell] = []
    variants = _Variants(grid)
    variants.refuse_too_many()
    filters = Filters(grid)
    for variant in variants.all():
        values = {
            "model": variant.model,
            "phase1": variant.pair.phase1,
            "phase2": variant.pair.phase2,
            "strategy": variant.strategy,
        }
        for seed in grid.seeds:
            if not filters.keep(values, variant.settings, seed):
                continue
            _require_checkpoint(grid, variant)
            found.append(Cell(variant, seed))
    if not grid.filters_fit:
        filters.refuse_useless(variants.swept())
    if not found:
        section = "include" if grid.include else "exclude"
        raise UserError(
            "no cell is left by the filters", where=grid.source.where((section,)), fix="widen `include`, or take from `exclude`"
        )
    return found


def _require_checkpoint(grid: Grid, variant: Variant) -> None:
    phase1 = variant.pair.phase1
    if phase1 not in grid.datasets and phase1 not in grid.models[variant.model]:
        raise UserError(
            f"model {variant.model} has no checkpoint {phase1!r}",
            where=grid.source.where(("pairs", grid.pairs.index(variant.pair), "phase1")),
            fix=f"add it under models.{variant.model}, or exclude {{model: {variant.model}, phase1: {phase1}}}",
        )


class _Variants:
    """Splits the grid's settings into fixed and swept ones, and merges them for each variant."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        shared = {key: value for key, value in grid.training.items() if key not in PHASES}
        self.training, self.axes = split(TrainingSettings, shared, grid.source, ("training",))
        self.phases: dict[str, tuple[dict[str, Any], tuple[Axis, ...]]] = {}
        for phase in PHASES:
            section = grid.training.get(phase, {})
            if not isinstance(section, dict):
                raise UserError("found no mapping", where=grid.source.where(("training", phase)), fix="settings of this phase")
            self.phases[phase] = split(TrainingSettings, section, grid.source, ("training", phase))
        self.replay, self.replay_axes = split(ReplaySampling, grid.replay, grid.source, ("replay",))
        self.first = {key: values[0] for key, values in self.axes}
        self.first_phase1 = {key: values[0] for key, values in self.phases["phase1"][1]}
        self.strategies = chosen_strategies(grid)
        self.merged: dict[str, TrainingSettings] = {}
        self.sampled: dict[str, ReplaySampling] = {}

    def refuse_too_many(self) -> None:
        """Count the cells that sweeps and seeds make, before the first is made.

        Raises:
            UserError: more than the grid's `max_cells`.
        """
        count, largest = 0, ()
        for model in self.grid.models:
            for pair in self.grid.pairs:
                for strategy in self.strategies:
                    axes = self._axes(model, pair.phase1 in self.grid.datasets, strategy)
                    count += len(self.grid.seeds) * prod(len(values) for _, values in axes)
                    largest = max(largest, tuple(f"{len(values):,} values of {path}" for path, values in axes), key=len)
        if count > self.grid.max_cells:
            parts = [
                f"{len(self.grid.models):,} models",
                f"{len(self.grid.pairs):,} pairs",
                f"{len(self.strategies):,} strategies",
            ]
            parts += [f"{len(self.grid.seeds):,} seeds", *largest]
            raise UserError(
                f"the grid has {count:,} cells ({' × '.join(parts)}), more than {self.grid.max_cells:,}",
                where=self.grid.source.where(_longest(self.grid)),
                fix="fewer seeds or swept values; or raise max_cells",
            )

    def swept(self) -> dict[str, tuple[Any, ...]]:
        """Every swept setting by its path, with its values."""
        found: dict[str, tuple[Any, ...]] = {f"training.{key}": values for key, values in self.axes}
        for phase, (_, axes) in self.phases.items():
            found |= {f"training.{phase}.{key}": values for key, values in axes}
        found |= {f"replay.{key}": values for key, values in self.replay_axes}
        for strategy in self.strategies:
            for prefix, axes in (("strategy", strategy.axes), ("strategy.training", strategy.training_axes)):
                for key, values in axes:
                    found[f"{prefix}.{key}"] = (*found.get(f"{prefix}.{key}", ()), *values)
        return found

    def all(self) -> Iterator[Variant]:
        for model in self.grid.models:
            for pair in self.grid.pairs:
                for strategy in self.strategies:
                    yield from self._of(model, pair, strategy)

    def _of(self, model: str, pair: Pair, strategy: ChosenStrategy) -> Iterator[Variant]:
        trains = pair.phase1 in self.grid.datasets
        axes = self._axes(model, trains, strategy)
        name = f"{model}/{pair.phase1}→{pair.phase2}/{strategy.name}"
        built: dict[str, Strategy] = {}
        for settings in combinations(axes):
            own = _below(settings, "strategy")
            key = repr(own)
            if key not in built:
                built[key] = strategy.build(self.grid, own)
            everywhere: Layer = (self.training | _below(settings, "training"), ("training",))
            phase1: Layer = (self.phases["phase1"][0] | _below(settings, "training.phase1"), ("training", "phase1"))
            phase2: Layer = (self.phases["phase2"][0] | _below(settings, "training.phase2"), ("training", "phase2"))
            mine: Layer = (strategy.training | _below(settings, "strategy.training"), (*strategy.path, "training"))
            tuning = self._training((self.first | everywhere[0], everywhere[1]), (self.first_phase1 | phase1[0], phase1[1]))
            yield Variant(
                name=name,
                model=model,
                pair=pair,
                strategy=strategy.name,
                implementation=built[key],
                settings=settings,
                phase1=tuning if trains else None,
                tuning=tuning,
                phase2=self._training(everywhere, phase2, mine),
                sampling=self._sampling(self.replay | _below(settings, "replay")),
                given=self._given(model, everywhere),
                path=strategy.path,
            )

    def _given(self, model: str, everywhere: Layer) -> dict[str, TrainingSettings]:
        return {
            name: self._training(everywhere, (source.train.training, ("models", model, name, "train", "training")))
            for name, source in self.grid.models[model].items()
            if source.train is not None
        }

    def _axes(self, model: str, trains: bool, strategy: ChosenStrategy) -> list[Axis]:
        """The swept settings that this variant obeys: one that is overridden wherever it counts would only double cells."""
        phase1, phase2 = self.phases["phase1"], self.phases["phase2"]
        nearer = {*phase2[0], *dict(phase2[1]), *strategy.training, *dict(strategy.training_axes)}
        nearer1 = {*phase1[0], *dict(phase1[1])}
        given = [source.train.training for source in self.grid.models[model].values() if source.train is not None]
        axes: list[Axis] = []
        for key, values in self.axes:
            counts = key not in nearer or (trains and key not in nearer1) or any(key not in training for training in given)
            if counts:
                axes.append((f"training.{key}", values))
        if trains:
            axes += [(f"training.phase1.{key}", values) for key, values in phase1[1]]
        mine = {*strategy.training, *dict(strategy.training_axes)}
        axes += [(f"training.phase2.{key}", values) for key, values in phase2[1] if key not in mine]
        axes += [(f"replay.{key}", values) for key, values in self.replay_axes]
        axes += [(f"strategy.{key}", values) for key, values in strategy.axes]
        return axes + [(f"strategy.training.{key}", values) for key, values in strategy.training_axes]

    def _training(self, *layers: Layer) -> TrainingSettings:
        """Nearer layers win; `steps` and `epochs` replace each other."""
        merged: dict[str, Any] = {}
        for values, _ in layers:
            for one, other in (("steps", "epochs"), ("epochs", "steps")):
                if values.get(one) is not None:
                    merged.pop(other, None)
            merged |= values
        key = repr(sorted(merged.items()))
        if key not in self.merged:
            self.merged[key] = self._validated(merged, layers)
        return self.merged[key]

    def _validated(self, merged: dict[str, Any], layers: tuple[Layer, ...]) -> TrainingSettings:
        source = self.grid.source
        nearest_path = next((path for values, path in reversed(layers) if values), layers[-1][1])
        try:
            training = TrainingSettings(**merged)
        except ValidationError as error:
            raise as_user_error(error, TrainingSettings, merged, source, nearest_path) from None
        finetune = self.grid.resources.get("finetune")
        workers = finetune.workers if finetune is not None else 1
        if training.batch_size % workers:
            path = next(((*path, "batch_size") for values, path in reversed(layers) if "batch_size" in values), None)
            below = training.batch_size - training.batch_size % workers
            raise UserError(
                f"a batch of {training.batch_size} cannot be split evenly over {workers} workers",
                where=source.where(path or ("resources", "finetune", "workers")),
                fix=f"a multiple of {workers}, e.g. {below or workers}; or another resources.finetune.workers",
            )
        return training

    def _sampling(self, values: dict[str, Any]) -> ReplaySampling:
        key = repr(values)
        if key not in self.sampled:
            self.sampled[key] = ReplaySampling(**values)
        return self.sampled[key]


def _longest(grid: Grid) -> tuple[str | int, ...]:
    """The place of the grid's longest list: most likely the one with too many items."""
    found: list[tuple[int, tuple[str | int, ...]]] = [(len(grid.seeds), ("seeds",)), (len(grid.pairs), ("pairs",))]
    found.append((len(grid.strategies), ("strategies",)))
    sections: list[tuple[Mapping[str, Any], tuple[str | int, ...]]] = [(grid.training, ("training",)), (grid.replay, ("replay",))]
    sections += [(section, ("training", phase)) for phase in PHASES if isinstance(section := grid.training.get(phase), dict)]
    for index, strategy in enumerate(grid.strategies):
        sections += [(strategy.settings, ("strategies", index)), (strategy.training, ("strategies", index, "training"))]
    for section, path in sections:
        found += [(len(value), (*path, key)) for key, value in section.items() if isinstance(value, list)]
    return max(found, key=lambda item: item[0])[1]


def _below(settings: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The settings directly below a path: ``training.learning_rate`` is below ``training``, ``training.phase1.steps`` not."""
    start = f"{path}."
    return {key[len(start) :]: value for key, value in settings.items() if key.startswith(start) and "." not in key[len(start) :]}
