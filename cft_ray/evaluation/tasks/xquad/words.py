"""A second F1 of questions answered out of a text, for every script; loaded by the harness from the YAMLs beside it.

XQuAD's own F1 in the harness is SQuAD's: words by white space, punctuation and articles of English. Chinese and Thai write no
spaces, so there it is an exact match, and a full stop of another script makes a right answer wrong. MLQA's own knows seven
languages. ``f1_words`` is the same F1 (Rajpurkar et al. 2016, section 6.1) over words as ICU finds them, whatever the script,
without punctuation; articles count as words, because what is one depends on the language.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lm_eval.tasks.xquad.utils import process_results_qa

from cft_ray.evaluation.tasks.xlsum.rouge import WordTokenizer

_words = WordTokenizer().tokenize


def f1_words(target: str, answer: str) -> float:
    """F1 of the two bags of words, between 0 and 1; texts without a word (symbols alone) are alike or not."""
    wanted, given = Counter(_words(target)), Counter(_words(answer))
    if not wanted and not given:
        return float(_plain(target) == _plain(answer))
    common = (wanted & given).total()
    return 2 * common / (wanted.total() + given.total())


def best_f1_words(targets: Sequence[str], answer: str) -> float:
    """The F1 with the target that it is highest with."""
    return max(f1_words(target, answer) for target in targets)


def xquad(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Metrics of one answer to an item of XQuAD; the harness' own look at its first target alone, and so does this."""
    return {**process_results_qa(doc, results), "f1_words": f1_words(doc["answers"]["text"][0], results[0])}


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()
