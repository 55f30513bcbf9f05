"""The harness' results as rows of our tables. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from cft_ray.errors import UserError
from cft_ray.plan.specs import EvaluateSpec


@dataclass(frozen=True)
class Evaluation:
    """What a benchmark of one model gave.

    Args:
        scores: rows of the table `scores`, without key.
        samples: rows of the table `samples`, without key.
        shown: language -> value of the metric that the results show.
    """

    scores: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    shown: dict[str, float]


def evaluation_of(
    spec: EvaluateSpec,
    results: Mapping[str, Any],
    members: Mapping[str, Sequence[str]],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Evaluation:
    """Rows from what `lm_eval.evaluate` returns.

    Args:
        spec: the benchmark.
        results: the harness' results, samples included.
        members: task or group of the spec -> the tasks it consists of; their scores are rows too (MMLU's subjects).
        groups: group of the spec -> the groups inside it, whose scores are rows too.

    Raises:
        UserError: a task does not have the spec's metric.
    """
    scores: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    shown: dict[str, float] = {}
    for language, name in spec.tasks.items():
        values = _metrics(results["results"][name])
        if spec.metric not in values:
            raise UserError(
                f"task {name} has no metric {spec.metric!r}",
                where=f"benchmark {spec.benchmark}",
                fix=f"use one of {', '.join(sorted(values))}",
            )
        shown[language] = values[spec.metric][0]
        about = {"benchmark": spec.benchmark, "language": language}
        for task in dict.fromkeys((name, *(groups or {}).get(name, ()), *members[name])):
            scores += [
                {
                    **about,
                    "ability": spec.ability,
                    "task": task,
                    "metric": metric,
                    "shown": task == name and metric == spec.metric,
                    "value": value,
                    "stderr": stderr,
                    "n": _answered(results, task, members[name]),
                }
                for metric, (value, stderr) in _metrics(results["results"][task]).items()
            ]
        for task in members[name]:
            samples += [{**about, "task": task, **row} for row in _samples(results["samples"][task])]
    return Evaluation(scores, samples, shown)


def _answered(results: Mapping[str, Any], task: str, members: Sequence[str]) -> int:
    """Items behind a score: a task's own; a group's are those of the tasks below it."""
    counts, subtasks = results["n-samples"], results.get("group_subtasks", {})
    if task in counts:
        return counts[task]["effective"]
    return sum(_answered(results, below, members) for below in subtasks.get(task, members))


def metric_name(metric: str, answers: str) -> str:
    """A metric's name in the tables: the harness' own, with the filter of the answers behind it where there is one."""
    return metric if answers == "none" else f"{metric},{answers}"


def _metrics(result: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Metric -> (value, standard error) from the harness' flat ``{"acc,none": …, "acc_stderr,none": …}``."""
    found = {}
    for key, value in result.items():
        metric, comma, answers = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = result.get(f"{metric}_stderr,{answers}")
        found[metric_name(metric, answers)] = float(value), float(stderr) if isinstance(stderr, int | float) else None
    return found


def _samples(logged: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row an item; an item that was scored under several filters has the first one's answer and all metrics."""
    rows: dict[int, dict[str, Any]] = {}
    key = _identity([sample["doc"] for sample in logged])
    for sample in logged:
        doc = sample["doc"]
        row = rows.setdefault(
            sample["doc_id"],
            {
                "item": str(sample["doc_id"] if key is None else doc[key]),
                "cluster": cluster(doc),
                "target": _target(sample),
                "response": _response(sample),
                "metrics": [],
            },
        )
        for metric in sample["metrics"]:
            value = _number(sample[metric])
            if value is not None:
                row["metrics"].append({"metric": metric_name(metric, sample["filter"]), "value": value})
    return list(rows.values())


def _identity(docs: Sequence[Mapping[str, Any]]) -> str | None:
    """The column that names a task's items; None where none names all: then an item is its place in the task."""
    return next((key for key in ("id", "key", "ind") if docs and all(doc.get(key) is not None for doc in docs)), None)


def cluster(doc: Mapping[str, Any]) -> str | None:
    """What an item shares with others: its subject, its paragraph (named by its digest) or its source (the video or
    article of a HellaSwag context); None: it stands alone."""
    if doc.get("subject"):
        return str(doc["subject"])
    if doc.get("context"):
        return sha256(str(doc["context"]).encode()).hexdigest()[:16]
    return str(doc["source_id"]) if doc.get("source_id") else None


def _is_choice(sample: Mapping[str, Any]) -> bool:
    answers = sample["filtered_resps"]
    return bool(answers) and isinstance(answers[0], list | tuple) and len(answers[0]) == 2


def _target(sample: Mapping[str, Any]) -> str:
    target, arguments = sample["target"], sample["arguments"]
    if _is_choice(sample) and isinstance(target, int) and 0 <= target < len(arguments):
        return str(arguments[target][1]).strip()
    return str(target)


def _response(sample: Mapping[str, Any]) -> str:
    """The answer; where choices are scored, the one with the highest log-likelihood."""
    answers = sample["filtered_resps"]
    if not _is_choice(sample):
        return str(answers[0])
    best = max(range(len(answers)), key=lambda index: answers[index][0])
    return str(sample["arguments"][best][1]).strip()


def _number(value: object) -> float | None:
    """A metric of one item as a number; a list (IFEval's instructions) becomes its mean."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, np.generic) and np.issubdtype(value.dtype, np.number):
        return float(value.item())
    if isinstance(value, list) and value:
        parts = [_number(part) for part in value]
        return None if None in parts else sum(part for part in parts if part is not None) / len(parts)
    return None
