"""DES: the similarity of two data sets by the mean of their embeddings (arXiv 2410.16006, section 3.1).

    DES(D1, D2) = m1/‖m1‖ · m2/‖m2‖,  m = mean over the data set's sampled rows of their embeddings

Its uncertainty is that of the samples. Both sides' rows are resampled with replacement; as counts of a row in a resample are
all but independent Poisson variables (Chamandy et al. 2012, "Estimating uncertainty for massive data streams"), all resampled
means come from one pass over the vectors, whatever their number. The noise of a sample makes DES too small, that of a
resample once more, so percentiles of the resamples would lie below the truth: the interval is the basic one
(Davison and Hinkley 1997, section 5.2), which mirrors them at the estimate.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
Vectors = Iterable[tuple[np.ndarray, np.ndarray]]
"""([rows] languages, [rows, dimension] vectors), a part of a data set after the other"""


@dataclass
class Side:
    """One data set, or one of its languages.

    Args:
        mean: [dimension] float64.
        resampled: [resamples, dimension] float64, means of the resamples.
    """

    mean: np.ndarray
    resampled: np.ndarray


@dataclass(frozen=True)
class Similarity:
    """DES and its 95 % interval."""

    value: float
    low: float
    high: float


def sides(vectors: Vectors, resamples: int, seed: tuple[int, ...]) -> dict[str | None, Side]:
    """Means and resampled means of a data set (None) and of each of its languages.

    Args:
        vectors: its parts.
        resamples: how many.
        seed: of the resamples; other data sets get another.
    """
    draws = np.random.default_rng(seed)
    sums: dict[str | None, np.ndarray] = {}
    counts: dict[str | None, int] = {}
    drawn: dict[str | None, np.ndarray] = {}
    drawn_counts: dict[str | None, np.ndarray] = {}
    for languages, part in vectors:
        weights = draws.poisson(1.0, (resamples, len(part))).astype(np.float32)
        for language in (None, *dict.fromkeys(languages.tolist())):
            mine = slice(None) if language is None else np.flatnonzero(languages == language)
            of_part, of_weights = part[mine], weights[:, mine]
            sums[language] = sums.get(language, 0.0) + of_part.sum(axis=0, dtype=np.float64)
            counts[language] = counts.get(language, 0) + len(of_part)
            drawn[language] = drawn.get(language, 0.0) + (of_weights @ of_part).astype(np.float64)
            drawn_counts[language] = drawn_counts.get(language, 0.0) + of_weights.sum(axis=1, dtype=np.float64)
    return {
        language: Side(sums[language] / counts[language], drawn[language] / _least_one(drawn_counts[language]))
        for language in sums
    }


def des(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """DES of means: [..., dimension] each; NaN where a mean has no direction."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (left * right).sum(axis=-1) / (np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1))
    return np.clip(value, -1.0, 1.0)


def similarity(left: Side, right: Side) -> Similarity:
    """DES of two sides with the basic bootstrap interval, within [-1, 1]."""
    value = float(des(left.mean, right.mean))
    if not np.isfinite(value):
        return Similarity(value, value, value)
    resampled = des(left.resampled, right.resampled)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled, [1 - tail, tail])
    return Similarity(value, *(float(np.clip(2 * value - quantile, -1.0, 1.0)) for quantile in (low, high)))


def rows(left: dict[str | None, Side], right: dict[str | None, Side], names: tuple[str, str]) -> list[dict[str, Any]]:
    """Rows of the table `similarity`.

    ``des``, ``des_low``, ``des_high``: of the whole data sets, and of the same language of both where both have it.
    ``des_left``: a language of the left one and all of the right; ``des_right``: the other way round.
    """
    found: list[tuple[str, str | None, float]] = []
    for language in [None, *(language for language in left if language is not None and language in right)]:
        of_both = similarity(left[language], right[language])
        found += [("des", language, of_both.value), ("des_low", language, of_both.low), ("des_high", language, of_both.high)]
    for measure, of_one, of_other in (("des_left", left, right), ("des_right", right, left)):
        whole = of_other[None].mean
        found += [(measure, name, float(des(side.mean, whole))) for name, side in of_one.items() if name is not None]
    return [
        {"measure": measure, "left": names[0], "right": names[1], "language": language, "value": value}
        for measure, language, value in found
        if np.isfinite(value)
    ]


def _least_one(counts: np.ndarray) -> np.ndarray:
    """A resample of a language with few rows may be empty; its mean has no direction, and is left out."""
    return np.maximum(counts, 1.0)[:, None]
