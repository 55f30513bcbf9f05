"""Judgements as rows of our tables and as the stage's summary. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from cft_ray.errors import UserError
from cft_ray.evaluation.alpaca_eval.annotations import Annotation
from cft_ray.evaluation.alpaca_eval.items import Item
from cft_ray.evaluation.alpaca_eval.win_rate import Metric
from cft_ray.evaluation.rows import Evaluation
from cft_ray.grid.settings import JudgeSettings
from cft_ray.plan.specs import EvaluateSpec


def evaluation_of(
    spec: EvaluateSpec,
    items: Sequence[Item],
    answers: Sequence[str],
    preferences: Mapping[int, float],
    metrics: Mapping[str, Metric],
) -> Evaluation:
    """Scores, and one sample an item: its preference between 0 (the reference is better) and 1 (the model's answer is).

    Args:
        spec: the benchmark.
        items: all that were asked.
        answers: the model's, one for each.
        preferences: item's number -> 1 (the reference) to 2 (the model's answer); items without judgement are absent.
        metrics: of `cft_ray.evaluation.alpaca_eval.win_rate.win_rates`.

    Raises:
        UserError: the spec's metric is not among them, or could not be computed.
    """
    ((language, task),) = spec.tasks.items()
    about = {"benchmark": spec.benchmark, "task": task, "language": language}
    scores = [
        {
            **about,
            "ability": spec.ability,
            "metric": name,
            "shown": name == spec.metric,
            "value": metric.value,
            "stderr": metric.stderr,
            "n": len(preferences),
        }
        for name, metric in metrics.items()
    ]
    samples = [
        {
            **about,
            "item": str(item.number),
            "cluster": None,
            "target": item.reference,
            "response": answer,
            "metrics": [{"metric": "win_rate", "value": preferences[item.number] - 1}] if item.number in preferences else [],
        }
        for item, answer in zip(items, answers, strict=True)
    ]
    value = metrics[spec.metric].value if spec.metric in metrics else None
    if value is None:
        there = [name for name, metric in metrics.items() if metric.value is not None]
        raise UserError(
            f"there is no {spec.metric!r} of these items", where=f"benchmark {spec.benchmark}", fix=f"one of {', '.join(there)}"
        )
    return Evaluation(scores, samples, {language: value})


def judging_of(
    judge: JudgeSettings, items: int, annotations: Mapping[int, Annotation], failures: Mapping[str, int]
) -> dict[str, Any]:
    """What the judging took, for the manifest: counts of items, tokens, and their price where the grid names prices.

    Args:
        judge: prices.
        items: asked about.
        annotations: item's number -> judgement.
        failures: ``malformed``, ``refused``, ``unanswered`` -> items without judgement.
    """
    prompt_tokens = sum(annotation.prompt_tokens for annotation in annotations.values())
    completion_tokens = sum(annotation.completion_tokens for annotation in annotations.values())
    taken: dict[str, Any] = {
        "judged": items - sum(failures.values()),
        **failures,
        "judge_prompt_tokens": prompt_tokens,
        "judge_completion_tokens": completion_tokens,
    }
    if judge.prompt_price is not None or judge.completion_price is not None:
        price = prompt_tokens * (judge.prompt_price or 0.0) + completion_tokens * (judge.completion_price or 0.0)
        taken["judge_price"] = price / 1e6
    return taken
