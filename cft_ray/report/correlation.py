"""Does similarity predict forgetting? Rank and linear correlation over a grid's cells, with permutation p-values.

Predictors are what was measured of a cell's data sets and models; targets are the backward transfer of the cell, in all
and per benchmark of task ability (R[2,t] − R[1,t]; negative means forgetting). A value that is absent leaves its cell out
of that pair alone, and ``n`` says how many are left.

A p-value is the share of pairings at least as extreme as the one found (twice the smaller tail), over all n! pairings
where they are few and a seeded draw otherwise; it needs no normality. It takes the cells for exchangeable, which cells
that share a data set pair or a Phase 1 are not: where few *distinct* values stand behind many cells, the reading is
"descriptive" and the p-value is no test of the question. So the cells of one model and pair, which differ in strategy and
seed alone, are also compared among themselves (`WITHIN`): the mean of the groups' coefficients, against pairings drawn
inside each group. Pure: numpy, scipy, polars.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import permutation_test, rankdata

from cft_ray.report.tables import GridTables, NothingToDraw

METHODS = ("spearman", "kendall", "pearson")
LEAST = 3
"""cells below which no correlation is taken"""
ENOUGH = 10
"""distinct values of predictor and target from which on a correlation is more than descriptive"""
RESAMPLES = 1_999
"""pairings drawn where there are more than `EXACT`"""
EXACT = 5_040
"""pairings up to which all are taken: those of seven cells"""
SEED = 0
ROUNDING = 1e-9
"""by which a drawn coefficient may miss one that it equals"""
DESCRIPTIVE = "descriptive"
ALL = "all"
"""the value of column ``model`` for the cells of all models together"""
WITHIN = "within model and pair"
"""the value of column ``model`` for comparisons among the cells of one model and pair, averaged over these"""


@dataclass(frozen=True)
class Predictor:
    """A number per cell: the stage of a role, a measure of it, averaged over its layers if it has any."""

    name: str
    label: str
    role: str
    measure: str


PREDICTORS = (
    Predictor("des", "DES of the data sets", "insight:des", "des"),
    Predictor("mpd_phases", "MPD, Phase 1 to Phase 2", "insight:drift:phase1-phase2", "mpd"),
    Predictor("mpd_datasets", "MPD, base tuned on either set", "insight:drift:datasets", "mpd"),
    Predictor("kl_phase2", "KL on Phase 2 answers (nats/token)", "insight:kl:phase2", "kl_answer"),
    Predictor("kl_english", "KL on English answers (nats/token)", "insight:kl:english", "kl_answer"),
    Predictor("variance_change", "variance change, mean over layers", "insight:covariance:phase1-phase2", "covariance_frobenius"),
)
BACKWARD_TRANSFER = "backward_transfer"

SCHEMA = pl.Schema(
    {
        "grid": pl.String,
        "model": pl.String,
        "predictor": pl.String,
        "target": pl.String,
        "method": pl.String,
        "n": pl.Int64,
        "distinct_predictor": pl.Int64,
        "distinct_target": pl.Int64,
        "value": pl.Float64,
        "p": pl.Float64,
        "pairings": pl.Int64,
        "exact": pl.Boolean,
        "reading": pl.String,
    }
)
"""One row per scope (`ALL`, a model, `WITHIN`), predictor, target and method; ``pairings``: behind p; ``exact``: all of them."""


def predictors(tables: GridTables) -> pl.DataFrame:
    """One row per cell: its names, a column per `PREDICTORS`, null where it was not measured."""
    frame = tables.cells
    for one in PREDICTORS:
        rows = tables.measured(one.role, one.measure).filter(pl.col("projection").is_null() & pl.col("head").is_null())
        by_layer = one.measure.startswith("covariance")
        rows = rows.filter(pl.col("layer").is_not_null() if by_layer else pl.col("layer").is_null())
        values = rows.group_by("cell").agg(pl.col("value").mean().alias(one.name))
        frame = frame.join(values, on="cell", how="left", maintain_order="left")
    return frame


def targets(tables: GridTables) -> pl.DataFrame:
    """One row per cell: ``backward_transfer``, and the change of each benchmark of task ability, by its name."""
    overall = tables.summary.select("cell", BACKWARD_TRANSFER)
    means = tables.results.filter((pl.col("language") == "mean") & (pl.col("ability") == "TA"))
    for benchmark in means["benchmark"].unique(maintain_order=True):
        change = means.filter(pl.col("benchmark") == benchmark).select("cell", pl.col("change").alias(benchmark))
        overall = overall.join(change, on="cell", how="left", maintain_order="left")
    return overall


def correlations(tables: GridTables) -> pl.DataFrame:
    """All predictors against all targets, over all cells, over each model's where there are several, and `WITHIN`.

    Returns:
        `SCHEMA`; without rows for a predictor that no cell has.

    Raises:
        NothingToDraw: no cell has both a predictor and a backward transfer.
    """
    left, right = predictors(tables), targets(tables)
    joined = left.join(right, on="cell", how="left", maintain_order="left")
    models = tables.models
    scopes = {ALL: [joined]} | ({model: [joined.filter(pl.col("model") == model)] for model in models} if len(models) > 1 else {})
    groups = joined.partition_by("model", "pair", maintain_order=True)
    if any(group.height >= LEAST for group in groups):
        scopes[WITHIN] = groups
    rows = []
    for model, parts in scopes.items():
        for predictor in PREDICTORS:
            for target in right.columns[1:]:
                pairs = [_pairs(part, predictor.name, target) for part in parts]
                if not any(len(x) for x, _ in pairs):
                    continue
                head = {"grid": tables.name, "model": model, "predictor": predictor.name, "target": target}
                rows += [head | vars(one) for one in (correlate_within(pairs) if model == WITHIN else correlate(*pairs[0]))]
    if not rows:
        raise NothingToDraw("no cell has both a measure of similarity and a backward transfer")
    return pl.DataFrame(rows, schema=SCHEMA)


def _pairs(cells: pl.DataFrame, predictor: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    found = cells.select(predictor, target).drop_nulls().filter(pl.all_horizontal(pl.all().is_finite()))
    return found[predictor].to_numpy(), found[target].to_numpy()


@dataclass(frozen=True)
class Correlation:
    """One coefficient; ``value`` and ``p`` are None where there are fewer than `LEAST` cells or a side is constant."""

    method: str
    n: int
    distinct_predictor: int
    distinct_target: int
    value: float | None
    p: float | None
    pairings: int
    exact: bool
    reading: str


def correlate(x: np.ndarray, y: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[Correlation, ...]:
    """Spearman's ρ, Kendall's τ-b and Pearson's r of paired values, each with its permutation p-value.

    Args:
        x: [n] finite.
        y: [n] finite.
        resamples: pairings drawn where n! is more than `EXACT`.
        seed: of the draw.
    """
    n, distinct = len(x), (len(np.unique(x)), len(np.unique(y)))
    reading = DESCRIPTIVE if min(distinct) < ENOUGH else ""
    if n < LEAST or min(distinct) < 2:
        return tuple(Correlation(method, n, *distinct, None, None, 0, False, DESCRIPTIVE) for method in METHODS)
    found = []
    for method in METHODS:
        tested, pairings, exact = _tested(method, x, y, resamples, seed)
        value = float(np.clip(tested.statistic, -1.0, 1.0))
        found.append(Correlation(method, n, *distinct, value, float(tested.pvalue), pairings, exact, reading))
    return tuple(found)


def correlate_within(
    groups: Sequence[tuple[np.ndarray, np.ndarray]], *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[Correlation, ...]:
    """The mean over groups of each coefficient, with a p-value from pairings inside the groups (a stratified permutation test).

    Args:
        groups: x and y of each, [n] finite; one with fewer than `LEAST` cells or a constant side is left out.
        resamples: draws of one pairing in every group.
        seed: of the draws.
    """
    used = [(x, y) for x, y in groups if len(x) >= LEAST and len(np.unique(x)) > 1 and len(np.unique(y)) > 1]
    n = sum(len(x) for x, _ in used)
    x, y = (np.concatenate([group[side] for group in used]) if used else np.empty(0) for side in (0, 1))
    distinct = len(np.unique(x)), len(np.unique(y))
    found = []
    for method in METHODS:
        if not used:
            found.append(Correlation(method, n, *distinct, None, None, 0, False, DESCRIPTIVE))
            continue
        tested = [_tested(method, x, y, resamples, seed)[0] for x, y in used]
        value = float(np.mean([np.clip(one.statistic, -1.0, 1.0) for one in tested]))
        draws = np.random.default_rng(seed)
        drawn = np.mean([draws.choice(one.null_distribution, resamples) for one in tested], axis=0)
        tails = [1 + int((side * drawn >= side * value - ROUNDING).sum()) for side in (1, -1)]
        p = min(1.0, 2 * min(tails) / (resamples + 1))
        found.append(Correlation(method, n, *distinct, value, p, resamples, False, DESCRIPTIVE if min(distinct) < ENOUGH else ""))
    return tuple(found)


def _tested(method: str, x: np.ndarray, y: np.ndarray, resamples: int, seed: int) -> tuple[Any, int, bool]:
    """scipy's permutation test of one coefficient; how many pairings it took, and whether these are all."""
    n = len(x)
    exact = factorial(n) <= EXACT
    pairings = factorial(n) if exact else resamples
    if method == "kendall":
        left, statistic, width = rankdata(x).astype(np.float32), _Kendall(_signs(rankdata(y))), n * n
    else:
        a, b = (rankdata(x), rankdata(y)) if method == "spearman" else (x, y)
        left, statistic, width = _standard(a), _Product(_standard(b)), n
    tested = permutation_test(
        (left,),
        statistic,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=pairings,
        batch=max(1, 2**22 // width),
        rng=np.random.default_rng(seed),
    )
    return tested, pairings, exact


def pick(rows: pl.DataFrame, *, predictor: str, target: str, method: str, model: str = ALL) -> dict | None:
    """The row of one correlation, as a mapping; None where there is none."""
    wanted = {"predictor": predictor, "target": target, "method": method, "model": model}
    found = rows.filter(**wanted).to_dicts()
    return found[0] if found else None


def measured_predictors(rows: pl.DataFrame) -> Iterable[Predictor]:
    """The predictors that a table of `correlations` has, in their order."""
    there = set(rows["predictor"])
    return [one for one in PREDICTORS if one.name in there]


def _standard(values: np.ndarray) -> np.ndarray:
    centred = np.asarray(values, dtype=np.float64) - np.mean(values)
    return centred / np.linalg.norm(centred)


def _signs(values: np.ndarray) -> np.ndarray:
    """[n, n] int8: sign of each difference."""
    return np.sign(values[:, None] - values[None, :]).astype(np.int8)


class _Product:
    """Pearson's r of standardised values: their inner product."""

    def __init__(self, right: np.ndarray) -> None:
        self._right = right

    def __call__(self, left: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.moveaxis(left, axis, -1) @ self._right


class _Kendall:
    """Kendall's τ-b: concordant less discordant pairs, over what ties leave of all (a permutation changes no ties)."""

    def __init__(self, signs: np.ndarray) -> None:
        self._rows, self._columns = np.triu_indices(len(signs), 1)
        self._signs = signs[self._rows, self._columns].astype(np.float32)

    def __call__(self, left: np.ndarray, axis: int = -1) -> np.ndarray:
        left = np.moveaxis(left, axis, -1)
        differences = np.sign(left[..., self._rows] - left[..., self._columns])
        untied = np.abs(differences).sum(-1, dtype=np.float64) * np.abs(self._signs).sum(dtype=np.float64)
        return (differences @ self._signs).astype(np.float64) / np.sqrt(untied)
