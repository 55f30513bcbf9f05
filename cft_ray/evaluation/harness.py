"""A benchmark of one model, by lm-evaluation-harness: its tasks in all languages, asked together, scored one by one.

The harness' tasks stay as they are, stock or ours. What the grid decides reaches them by the harness' own means: the
items of a data set artifact as metadata, the answer's length as generation arguments, the template as chat template.
"""

import difflib
import logging
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from cft_ray.errors import UserError
from cft_ray.evaluation.rows import Evaluation, evaluation_of
from cft_ray.evaluation.templated import Templated
from cft_ray.grid.settings import GenerationSettings
from cft_ray.plan.specs import EvaluateSpec

TASKS = Path(__file__).parent / "tasks"
"""Our own tasks."""
BOOTSTRAP = 1000
"""Resamples for the standard error of the few metrics that have no closed form (F1, BLEU)."""

logging.getLogger("lm_eval").setLevel(logging.ERROR)


def run_benchmark(model: LM, spec: EvaluateSpec, items: Path | None = None) -> Evaluation:
    """Ask a loaded model a benchmark's questions and score its answers.

    Args:
        model: a `Templated` harness model.
        spec: which tasks, how many items, which template and metric.
        items: Parquet file of canonical rows that the tasks' items are; None: the tasks load their own.

    Raises:
        UserError: an unknown task, items that cannot be loaded, or a metric that a task does not have.
    """
    assert isinstance(model, Templated)
    model.template, model.canonical = spec.template, items is not None
    manager = _task_manager(spec, items)
    loaded = _load(manager, spec)
    for task in loaded["tasks"].values():
        _apply_generation(task, spec.generation)
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(spec.seed)
    results = evaluate(
        model,
        loaded,
        limit=spec.limit,
        bootstrap_iters=BOOTSTRAP,
        apply_chat_template=spec.template is not None,
        verbosity="ERROR",
    )
    assert results is not None
    members = {
        name: [task.task_name for task in loaded["groups"][name].get_all_tasks()] if name in loaded.get("groups", {}) else [name]
        for name in spec.tasks.values()
    }
    return evaluation_of(spec, dict(results), members)


def _task_manager(spec: EvaluateSpec, items: Path | None) -> TaskManager:
    own = {path.stem for path in TASKS.glob("**/*.yaml")}
    metadata: dict[str, Any] = {} if items is None else {"items": str(items)}
    # The harness reads 15,000 files to know its own tasks: ten seconds that ours do not need.
    stock = not own.issuperset(spec.tasks.values())
    manager = TaskManager(include_path=str(TASKS), include_defaults=stock, metadata=metadata)
    for language, name in spec.tasks.items():
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            raise UserError(
                f"lm-evaluation-harness has no task {name!r}",
                where=f"benchmark {spec.benchmark}, language {language}",
                fix=f"did you mean {near[0]!r}?" if near else "name a task that the harness lists",
            )
    return manager


def _load(manager: TaskManager, spec: EvaluateSpec) -> Any:
    try:
        return manager.load(list(spec.tasks.values()))
    except (OSError, ValueError) as error:  # datasets' errors about absent, offline or unreadable data are of these two
        raise UserError(
            f"the items of {', '.join(spec.tasks.values())} cannot be loaded ({error})",
            where=f"benchmark {spec.benchmark}",
            fix="give this machine the task's data: access to the hub, or its cache",
        ) from error


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
