"""Whether a grid's sections fit together: every name that is used exists, none exists twice."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from cft_ray.data.toy import TOY
from cft_ray.errors import UserError
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.choices import chosen_benchmarks
from cft_ray.grid.problems import checked, nearest
from cft_ray.grid.schema import FILTERS, Grid
from cft_ray.grid.sections import CheckpointSource, Filter, StageResources
from cft_ray.grid.settings import TrainingSettings


def check_references(grid: Grid) -> None:
    """Raise the first mistake that only several sections together show.

    Raises:
        UserError: with file, path and line.
    """
    _once(grid, ("seeds",), grid.seeds)
    _once(grid, ("strategies",), [choice.name for choice in grid.strategies])
    _once(grid, ("evaluation", "benchmarks"), [choice.name for choice in grid.evaluation.benchmarks])
    _once(grid, ("loggers",), [logger.name for logger in grid.loggers])
    _once(grid, ("pairs",), [f"{pair.phase1}→{pair.phase2}" for pair in grid.pairs])
    _check_datasets(grid)
    for name in grid.models:
        _check_model(grid, name)
    _check_pairs(grid)
    chosen_benchmarks(grid)
    _check_data(grid)
    _check_judge(grid)
    _check_resources(grid)
    _check_insight(grid)
    if not grid.filters_fit:
        for section in FILTERS:
            for index, item in enumerate(getattr(grid, section)):
                _check_filter(grid, item, (section, index))


def _once(grid: Grid, path: tuple[str | int, ...], names: Sequence[object]) -> None:
    before: set[object] = set()
    for index, name in enumerate(names):
        if name in before:
            raise UserError(
                f"{name!r} is named twice" if isinstance(name, str) else f"{name} is named twice",
                where=grid.source.where((*path, index)),
                fix="give each a name of its own" if path == ("strategies",) else "keep one of the two",
            )
        before.add(name)


def _check_datasets(grid: Grid) -> None:
    for name, dataset in grid.datasets.items():
        if dataset.toy is not None:
            _known(grid, dataset.toy, TOY, ("datasets", name, "toy"), "toy data set")
            for index, language in enumerate(dataset.languages):
                there = TOY[dataset.toy].languages
                _known(grid, language, there, ("datasets", name, "languages", index), f"{dataset.toy} in language")
        if dataset.english is not None:
            _check_counterpart(grid, name)
        for model, checkpoints in grid.models.items():
            if name in checkpoints:
                raise UserError(
                    f"{name!r} is both a data set and a checkpoint of {model}, so a pair's phase1 could mean either",
                    where=grid.source.where(("datasets", name)),
                    fix="rename one of the two",
                )


def _check_counterpart(grid: Grid, name: str) -> None:
    seen = [name]
    while (english := grid.datasets[seen[-1]].english) is not None:
        path = ("datasets", seen[-1], "english")
        _known(grid, english, grid.datasets, path, "data set")
        if english in seen:
            what = "is its own English counterpart" if english == seen[-1] else "is the counterpart of its counterpart: a circle"
            fix = "name another data set, in English, without a counterpart of its own"
            raise UserError(f"{english} {what}", where=grid.source.where(path), fix=fix)
        seen.append(english)


def _check_model(grid: Grid, model: str) -> None:
    checkpoints = grid.models[model]
    if "base" not in checkpoints:
        raise UserError(
            f"{model} has no checkpoint `base`",
            where=grid.source.where(("models", model)),
            fix="name the model that phase 1 starts from: `base: {hub: …}`",
        )
    for name, checkpoint in checkpoints.items():
        path = ("models", model, name)
        if checkpoint.train is not None:
            _known(grid, checkpoint.train.data, grid.datasets, (*path, "train", "data"), "data set")
            _check_answers(grid, checkpoint.train.data, (*path, "train", "data"))
            checked(TrainingSettings, checkpoint.train.training, grid.source, (*path, "train", "training"))
        _check_chain(grid, checkpoints, name, path)


def _check_chain(grid: Grid, checkpoints: dict[str, CheckpointSource], name: str, path: tuple[str | int, ...]) -> None:
    seen = [name]
    while (start := checkpoints[seen[-1]].start) is not None:
        _known(grid, start, checkpoints, (*path[:2], seen[-1], "start"), "checkpoint")
        if start in seen:
            raise UserError(
                f"{' starts from '.join([*seen, start])}: a circle",
                where=grid.source.where((*path, "start")),
                fix="let one of them be hub, path or scratch",
            )
        seen.append(start)


def _check_pairs(grid: Grid) -> None:
    checkpoints = {name for model in grid.models.values() for name in model}
    for index, pair in enumerate(grid.pairs):
        if pair.phase1 not in grid.datasets and pair.phase1 not in checkpoints:
            known = [*grid.datasets, *sorted(checkpoints)]
            raise UserError(
                f"phase 1 {pair.phase1!r} names neither a data set nor a checkpoint",
                where=grid.source.where(("pairs", index, "phase1")),
                fix=nearest(pair.phase1, known),
            )
        _known(grid, pair.phase2, grid.datasets, ("pairs", index, "phase2"), "data set")
        for role in ("phase1", "phase2"):
            if (name := getattr(pair, role)) in grid.datasets:
                _check_answers(grid, name, ("pairs", index, role))


def _check_data(grid: Grid) -> None:
    """What is said by benchmark concerns one that is known, whether or not this grid measures it."""
    known = [*BENCHMARKS, *(choice.name for choice in grid.evaluation.benchmarks)]
    for section in ("data", "revisions"):
        for name in getattr(grid.evaluation, section):
            _known(grid, name, known, ("evaluation", section, name), "benchmark")


def _check_judge(grid: Grid) -> None:
    judge = grid.evaluation.judge
    if judge is None or judge.of is None:
        return
    known = [f"{model}/{name}" for model, checkpoints in grid.models.items() for name in checkpoints]
    _known(grid, judge.of, known, ("evaluation", "judge", "of"), "checkpoint")


def _check_resources(grid: Grid) -> None:
    most = grid.cluster.max_devices
    asked: list[tuple[str, StageResources, tuple[str, ...]]] = [
        (f"a {kind} stage", resources, ("resources", kind)) for kind, resources in grid.resources.items()
    ]
    for model, checkpoints in grid.models.items():
        for name, source in checkpoints.items():
            if source.train is not None and source.train.resources is not None:
                asked.append(
                    (f"the training of {model} {name}", source.train.resources, ("models", model, name, "train", "resources"))
                )
    for who, resources, path in asked:
        need = resources.workers * resources.gpus
        if most is not None and need > most:
            raise UserError(
                f"{who} asks for {need:g} devices ({resources.workers} workers of {resources.gpus:g}), "
                f"but the cluster has at most {most}",
                where=grid.source.where(path),
                fix=f"ask for at most {most}, or raise cluster.max_devices",
            )


def _check_answers(grid: Grid, name: str, path: tuple[str | int, ...]) -> None:
    columns = grid.datasets[name].columns
    if columns is not None and "output" not in columns:
        raise UserError(
            f"data set {name} has prompts without answers (its `columns` do not say where `output` is), so nothing can be "
            "trained on it",
            where=grid.source.where(path),
            fix=f"add `output: <column>` to datasets.{name}.columns",
        )


def _check_insight(grid: Grid) -> None:
    part = grid.insight.activations if grid.insight is not None else None
    if part is None:
        return
    for role in ("prompts", "parallel"):
        path = ("insight", "activations", role)
        name = getattr(part, role)
        if not name:
            continue
        _known(grid, name, grid.datasets, path, "data set")
        source = grid.datasets[name]
        if role == "parallel" and len(source.languages) < 2:
            raise UserError(
                "parallel sentences are in one language only", where=grid.source.where(path), fix="name two languages or more"
            )
        if role == "parallel" and source.rows is not None:
            raise UserError(
                "`rows` draws from each language by itself, so what is kept is no longer parallel",
                where=grid.source.where(path),
                fix="leave `rows` out, and use insight.activations.sample",
            )


def _check_filter(grid: Grid, item: Filter, path: tuple[str | int, ...]) -> None:
    known: dict[str, Iterable[str]] = {
        "model": grid.models,
        "phase1": [pair.phase1 for pair in grid.pairs],
        "phase2": [pair.phase2 for pair in grid.pairs],
        "strategy": [choice.name for choice in grid.strategies],
        "seed": [str(seed) for seed in grid.seeds],
    }
    if not item.model_fields_set:
        fix = f"one of {', '.join(known)}, settings"
        raise UserError("this says nothing of any cell", where=grid.source.where(path), fix=fix)
    for field, names in known.items():
        wanted = getattr(item, field)
        for index, value in enumerate(wanted or ()):
            text, here = str(value), (*path, field, index) if len(wanted) > 1 else (*path, field)
            if not set(text) & set("*?["):
                _known(grid, text, list(names), here, field)
            elif not any(fnmatchcase(name, text) for name in names):
                raise UserError(f"no {field} is like {text!r}", where=grid.source.where(here), fix=nearest(text, list(names)))


def _known(grid: Grid, name: str, known: Iterable[str], path: tuple[str | int, ...], noun: str) -> None:
    if name not in known:
        raise UserError(f"there is no {noun} {name!r}", where=grid.source.where(path), fix=nearest(name, list(known)))
