"""What can be said of answers from their text alone. Pure.

Words are found by ICU, which has dictionaries for the languages that write no spaces; punctuation marks are words of
their own, because a model that repeats itself repeats them too.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from icu4py.breakers import WordBreaker

SELF_BLEU_ANSWERS = 100
"""answers that self-BLEU is taken over: it grows with their number, so they are always as many where there are enough"""


def words(text: str) -> list[str]:
    """Words and punctuation marks of a text in any language; white space is none."""
    # One locale for all: ICU chooses the dictionary by script.
    return [part for segment in WordBreaker(text, "en") if (part := segment.strip())]


def repetition(units: Sequence[str], n: int) -> float | None:
    """Share of n-grams that occurred before in the text: 1 − distinct / all (seq-rep-n of Welleck et al. 2020).

    Args:
        units: words of one answer.
        n: length of the n-grams, at least 1.

    Returns:
        0 to 1; None for fewer than ``n`` words.
    """
    grams = [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def identified(text: str) -> str | None:
    """ISO 639-1 code of the language that a text seems to be in; None for a text without letters."""
    if not any(character.isalpha() for character in text):
        return None
    from py3langid import classify

    return str(classify(text)[0])


def self_bleu(answers: Sequence[Sequence[str]], seed: int) -> tuple[float | None, int]:
    """How alike the answers are: mean BLEU-4 of each against all others (Zhu et al. 2018), by sacrebleu, smoothed.

    Args:
        answers: words of each answer; those without words are left out.
        seed: of the draw of `SELF_BLEU_ANSWERS` where there are more.

    Returns:
        0 (nothing in common) to 1 (all alike), None for fewer than two; and how many answers it is taken over.
    """
    texts = [" ".join(units) for units in answers if units]
    if len(texts) > SELF_BLEU_ANSWERS:
        drawn = np.random.default_rng(seed).choice(len(texts), SELF_BLEU_ANSWERS, replace=False)
        texts = [texts[place] for place in sorted(drawn)]
    if len(texts) < 2:
        return None, len(texts)
    scorer = _scorer()
    scores = [scorer.sentence_score(text, texts[:place] + texts[place + 1 :]).score for place, text in enumerate(texts)]
    return float(np.mean(scores)) / 100, len(texts)


@cache
def _scorer() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", effective_order=True)  # answers shorter than four words have fewer orders
