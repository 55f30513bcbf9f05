"""The harness' tasks of a benchmark: found without reading all 15,000 of its files, and given other items where a grid says so.

A task that is to read its items from files is not changed: a YAML of the same name is laid over it that includes it and
sets `custom_dataset` (`cft_ray.evaluation.items.load`); one whose hub data set is pinned gets the revision. Prompts, metrics
and groups stay the harness' own. The same folder of YAMLs works with ``lm_eval --include_path``.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager

from cft_ray.errors import UserError
from cft_ray.evaluation.items import SHAPES
from cft_ray.grid.benchmarks import BENCHMARKS, Benchmark
from cft_ray.plan.items import SCORED
from cft_ray.plan.specs import EvaluateSpec

TASKS = Path(__file__).parent / "tasks"
"""Our own tasks, and the harness' own with metrics of ours beside theirs."""
STOCK = Path(lm_eval.tasks.__path__[0])

Files = Mapping[str, Mapping[str, Sequence[str]]]
"""language -> split -> local paths."""

_KNOWN: dict[str, Benchmark] = {
    task: benchmark for benchmark in BENCHMARKS.values() for task in (benchmark.tasks | benchmark.also).values()
}
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def known(task: str) -> Benchmark | None:
    """The declared benchmark that a task (or group) belongs to."""
    return _KNOWN.get(task)


def task_manager(spec: EvaluateSpec, items: Path | None, files: Files | None, folder: Path) -> TaskManager:
    """An index of the spec's tasks.

    Args:
        spec: of the benchmark.
        items: Parquet file of canonical rows, for tasks over such.
        files: that replace the hub; None: the tasks' own sources.
        folder: empty; YAMLs are written into it, which must stay while tasks are loaded.

    Raises:
        UserError: an unknown task.
    """
    metadata: dict[str, Any] = {} if items is None else {"items": str(items)}
    paths = _folders(spec)
    # A task that nobody declared may lie anywhere: then the harness reads all its files, which takes ten seconds.
    stock = {"include_defaults": paths is None, "metadata": metadata}
    # What comes later lies over what comes before: ours are the harness' own with more metrics.
    manager = TaskManager(include_path=[*(paths or []), TASKS], **stock)
    _require(manager, spec)
    revision = spec.items.revision if spec.items is not None else None
    if files is None and revision is None:
        return manager
    for language, name in spec.tasks.items():
        for leaf in leaves(manager, name):
            entry = manager.task_index[leaf]
            if entry.yaml_path is None or entry.cfg is None:
                raise UserError(f"task {leaf} is no YAML", where=f"benchmark {spec.benchmark}", fix="leave it its own data")
            change = _from_files(leaf, entry.cfg, files[language], name) if files else _at_commit(entry.cfg, revision)
            text = yaml.safe_dump({"include": str(entry.yaml_path), "task": leaf, **change}, allow_unicode=True)
            if files:
                text += "custom_dataset: !function cft_ray.evaluation.items.load\n"
            (folder / f"{leaf}.yaml").write_text(text, encoding="utf-8")
    return TaskManager(include_path=[*(paths or []), TASKS, folder], **stock)


def leaves(manager: TaskManager, name: str) -> Iterator[str]:
    """The tasks that a task, group or tag consists of."""
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        for member in sorted(entry.tags):
            yield from leaves(manager, member)
    elif entry.kind.name == "GROUP":
        for member in (entry.cfg or {})["task"]:
            yield from leaves(manager, member if isinstance(member, str) else member.get("task") or member["group"])
    else:
        yield name


def _folders(spec: EvaluateSpec) -> list[Path] | None:
    """The stock folders that hold the spec's tasks; None where one is not known."""
    own = {path.stem for path in TASKS.glob("**/*.yaml")}
    found: dict[Path, None] = {}
    for name in spec.tasks.values():
        if name in own:
            continue
        benchmark = known(name)
        if benchmark is None or benchmark.folder is None:
            return None
        found[STOCK / benchmark.folder] = None
    return list(found)


def _require(manager: TaskManager, spec: EvaluateSpec) -> None:
    for language, name in spec.tasks.items():
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            raise UserError(
                f"lm-evaluation-harness has no task {name!r}",
                where=f"benchmark {spec.benchmark}, language {language}",
                fix=f"did you mean {near[0]!r}?" if near else "name a task that the harness lists",
            )


def _from_files(leaf: str, config: Mapping[str, Any], files: Mapping[str, Sequence[str]], asked: str) -> dict[str, Any]:
    scored = config.get("test_split") or config.get("validation_split")
    splits = [config.get(key) for key in _SPLITS] + [(config.get("fewshot_config") or {}).get("split")]
    benchmark = known(asked)
    by = benchmark.items.by if benchmark is not None and benchmark.items is not None else None
    given = {scored if split == SCORED else split: list(paths) for split, paths in files.items()}
    if scored not in given:
        raise UserError(
            f"{leaf} is scored on {scored!r}, and no file is given for it", where=f"task {leaf}", fix=f"name {scored}"
        )
    change: dict[str, Any] = {"files": given, "splits": sorted({split for split in splits if split})}
    if by is not None and leaf != asked:
        change["only"] = {by: config["dataset_name"]}
    if leaf in SHAPES:
        change["shape"] = leaf
    return {"dataset_kwargs": change}


def _at_commit(config: Mapping[str, Any], revision: str | None) -> dict[str, Any]:
    return {"dataset_kwargs": {**(config.get("dataset_kwargs") or {}), "revision": revision}}
