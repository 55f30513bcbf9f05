"""MLQA's own metrics of one answer, and the F1 over words of every script; loaded by the harness from the YAMLs beside it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lm_eval.tasks.mlqa.utils import process_results_lang

from cft_ray.evaluation.tasks.xquad.words import best_f1_words

Scorer = Callable[[dict[str, Any], list[str]], dict[str, float]]


def score(doc: dict[str, Any], results: list[str], language: str) -> dict[str, float]:
    """Metrics of one answer in a language; of several targets, the best counts."""
    return {**process_results_lang(doc, results, language), "f1_words": best_f1_words(doc["answers"], results[0])}


mlqa_ar: Scorer = partial(score, language="ar")
mlqa_de: Scorer = partial(score, language="de")
mlqa_en: Scorer = partial(score, language="en")
mlqa_es: Scorer = partial(score, language="es")
mlqa_hi: Scorer = partial(score, language="hi")
mlqa_vi: Scorer = partial(score, language="vi")
mlqa_zh: Scorer = partial(score, language="zh")
