"""A benchmark of one model, by lm-evaluation-harness: its tasks in all languages, asked together, scored one by one.

The harness' tasks stay as they are, stock or ours. What the grid decides reaches them by the harness' own means: the
items of a data set artifact as metadata, items in files by a YAML laid over the task's, the answer's length as generation
arguments, the template as chat template.
"""

import logging
import random
import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import datasets
import langdetect
import lm_eval.utils
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate

from cft_ray.errors import UserError, without_secrets
from cft_ray.evaluation.answers import Kept
from cft_ray.evaluation.items import check_columns, local_files
from cft_ray.evaluation.overlay import Files, known, task_manager
from cft_ray.evaluation.punkt import needs_punkt, require_punkt
from cft_ray.evaluation.rows import Evaluation, evaluation_of
from cft_ray.evaluation.templated import Templated
from cft_ray.grid.settings import GenerationSettings
from cft_ray.plan.specs import EvaluateSpec
from cft_ray.storage.hub import from_hub, transient

_HUB_FILE = re.compile(r"hf://datasets/([^@]+)@([0-9a-f]{40})/")
BOOTSTRAP = 1000
"""Resamples for the standard error of the few metrics that have no closed form (BLEU, medians); means have one."""

logging.getLogger("lm_eval").setLevel(logging.ERROR)
datasets.disable_progress_bars()
# The harness compiles a task's few templates anew for each item, which takes longer than asking a tiny model.
_jinja: Any = lm_eval.utils.env
_jinja.from_string = lru_cache(maxsize=256)(_jinja.from_string)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's tasks with their items, ready to be asked.

    Args:
        spec: what was loaded.
        loaded: the harness' tasks and groups.
        canonical: the items are canonical rows.
    """

    spec: EvaluateSpec
    loaded: Any
    canonical: bool

    @property
    def members(self) -> dict[str, list[str]]:
        """Task or group of the spec -> the tasks it consists of."""
        groups = self.loaded.get("groups", {})
        return {
            name: [task.task_name for task in groups[name].get_all_tasks()] if name in groups else [name]
            for name in self.spec.tasks.values()
        }

    @property
    def revisions(self) -> dict[str, str]:
        """Data set of the hub -> commit that it was read at, of the items that came from there."""
        found: dict[str, str] = {}
        for task in self.loaded["tasks"].values():
            for split in task.dataset.values():
                for source in split.info.download_checksums or {}:
                    if match := _HUB_FILE.match(source):
                        found[match[1]] = match[2]
        return found

    @property
    def groups(self) -> dict[str, list[str]]:
        """Task or group of the spec -> the groups inside it."""
        groups = self.loaded.get("groups", {})
        return {
            name: [group.name for group in groups[name].get_all_groups()] if name in groups else []
            for name in self.spec.tasks.values()
        }


def load_benchmark(spec: EvaluateSpec, items: Path | None = None) -> Benchmark:
    """Load a benchmark's tasks and items; needs no model, so that mistakes show before one is loaded.

    Args:
        spec: which tasks, which items, how answers are generated.
        items: Parquet file of canonical rows that the tasks' items are; None: as the spec says.

    Raises:
        UserError: an unknown task; items that cannot be had, or lack a column; nltk's data is absent.
    """
    where = f"benchmark {spec.benchmark}"
    if needs_punkt(list(spec.tasks.values())):
        require_punkt(spec.nltk_data)
    files = None
    if spec.items is not None and spec.items.files:
        files = local_files(spec.items, tuple(spec.tasks), where=where)
        for language, name in spec.tasks.items():
            benchmark = known(name)
            if benchmark is not None and benchmark.items is not None:
                check_columns({language: files[language]}, benchmark.items.columns)
    loaded = _load(spec, items, files)
    for task in loaded["tasks"].values():
        _apply_generation(task, spec.generation)
        _process_once(task)
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(spec.seed)
    return Benchmark(spec, loaded, canonical=items is not None)


def run_benchmark(model: LM | Kept, spec: EvaluateSpec, items: Path | None = None) -> Evaluation:
    """`load_benchmark` and `ask` in one."""
    return ask(model, load_benchmark(spec, items))


def ask(model: LM | Kept, benchmark: Benchmark) -> Evaluation:
    """Ask a loaded model a benchmark's questions and score its answers.

    Args:
        model: a `Templated` harness model, possibly one whose answers are `Kept`.
        benchmark: of `load_benchmark`.

    Raises:
        UserError: a metric that a task does not have.
    """
    spec = benchmark.spec
    templated = model.model if isinstance(model, Kept) else model
    assert isinstance(templated, Templated)
    templated.template, templated.canonical = spec.template, benchmark.canonical
    # IFEval draws what an instruction leaves open, and asks langdetect, which guesses anew each time unless told not to.
    random.seed(spec.seed)
    langdetect.DetectorFactory.seed = spec.seed
    results = evaluate(
        cast("LM", model),
        benchmark.loaded,
        limit=spec.limit,
        bootstrap_iters=BOOTSTRAP,
        apply_chat_template=spec.template is not None,
        verbosity="ERROR",
    )
    assert results is not None
    return evaluation_of(spec, dict(results), benchmark.members, benchmark.groups)


def _load(spec: EvaluateSpec, items: Path | None, files: Files | None) -> Any:
    with tempfile.TemporaryDirectory(prefix="cft-ray-tasks-") as folder:
        manager = task_manager(spec, items, files, Path(folder))

        def load() -> Any:
            try:
                return manager.load(list(spec.tasks.values()))
            except (OSError, ValueError) as error:  # datasets' errors about absent, offline or unreadable data are of these two
                if transient(error):
                    raise
                raise UserError(
                    f"the items of {', '.join(spec.tasks.values())} cannot be loaded ({without_secrets(str(error))})",
                    where=f"benchmark {spec.benchmark}",
                    fix=f"give their files: --set evaluation.data.{spec.benchmark}=…; or access to the hub, or its cache",
                ) from error

        return from_hub(f"benchmark {spec.benchmark}", load, instead=f"evaluation.data.{spec.benchmark}")


def _process_once(task: Task) -> None:
    """What a task has made of its scored items when it was loaded is what it gives when the harness asks for them again.

    Without this they are made three times more, from items in memory: half of a small model's time on HellaSwag.
    """
    process, made = task.get_config("process_docs"), getattr(task, "task_docs", None)
    if process is None or made is None:
        return
    scored = task.dataset[task.get_config("test_split") or task.get_config("validation_split")]
    task.set_config("process_docs", lambda items: made if items is scored else process(items))


def _apply_generation(task: Task, generation: GenerationSettings) -> None:
    if task.get_config("output_type") != "generate_until":
        return
    own: dict[str, Any] = dict(task.get_config("generation_kwargs") or {})
    until = own.get("until") or []
    changed: dict[str, Any] = {"until": [*([until] if isinstance(until, str) else until), *generation.stop]}
    if generation.max_new_tokens is not None:
        changed["max_gen_toks"] = generation.max_new_tokens
    if generation.temperature > 0:
        changed.update(do_sample=True, temperature=generation.temperature)
    task.set_config("generation_kwargs", {**own, **changed})
