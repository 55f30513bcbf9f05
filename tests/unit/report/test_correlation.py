"""Coefficients against scipy's, p-values against pairings counted one by one, and the table over a planted grid."""

from itertools import permutations

import numpy as np
import polars as pl
import pytest
from insightgrid import Shape
from scipy.stats import kendalltau, pearsonr, spearmanr

from cft_ray.report import correlation
from cft_ray.report.correlation import (
    DESCRIPTIVE,
    METHODS,
    PREDICTORS,
    SCHEMA,
    WITHIN,
    correlate,
    correlate_within,
    correlations,
    pick,
)
from cft_ray.report.tables import NothingToDraw

REFERENCES = {"spearman": spearmanr, "kendall": kendalltau, "pearson": pearsonr}


@pytest.mark.parametrize("ties", [False, True])
def test_coefficients_are_scipys(ties: bool) -> None:
    random = np.random.default_rng(3)
    x, y = random.normal(size=(2, 30))
    y += 0.6 * x
    if ties:
        x, y = np.round(x), np.round(2 * y)
    for found in correlate(x, y):
        assert found.value == pytest.approx(REFERENCES[found.method](x, y).statistic, abs=1e-6)
        assert (found.n, found.exact, found.pairings) == (30, False, correlation.RESAMPLES)


def test_p_values_of_few_cells_are_all_pairings_counted() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 5.0, 8.0]), np.array([0.1, 0.4, 0.3, 0.9, 0.7])
    for found in correlate(x, y):
        values = np.array([REFERENCES[found.method](np.array(order), y).statistic for order in permutations(x)])
        at_least = np.mean(values >= REFERENCES[found.method](x, y).statistic - 1e-12)
        assert found.exact and found.pairings == 120
        assert found.p == pytest.approx(2 * at_least, abs=1e-9)


def test_p_value_worked_by_hand() -> None:
    """Of the 24 pairings of four cells one alone is as ordered as this; twice that tail is 1/12, by any coefficient."""
    x = np.array([1.0, 2.0, 3.0, 4.0])
    for found in correlate(x, -x):
        assert (found.value, found.p) == (pytest.approx(-1.0), pytest.approx(2 / 24))


def test_drawn_p_values_are_near_the_asymptotic_ones_and_seeded() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=40)
    y = 0.35 * x + random.normal(size=40)
    first, again = correlate(x, y), correlate(x, y)
    assert first == again
    for found in first:
        assert found.p == pytest.approx(REFERENCES[found.method](x, y).pvalue, abs=0.02)


def test_what_cannot_be_correlated_and_what_only_describes() -> None:
    assert {found.value for found in correlate(np.array([1.0, 2.0]), np.array([1.0, 2.0]))} == {None}
    assert {found.p for found in correlate(np.ones(5), np.arange(5.0))} == {None}
    x = np.arange(12.0)
    assert {found.reading for found in correlate(x, x**2)} == {""}
    assert {found.reading for found in correlate(x // 4, x**2)} == {DESCRIPTIVE}


def test_within_groups_is_the_mean_of_theirs_against_pairings_inside_them() -> None:
    """Two groups that rise inside and fall from one to the other: within, all rises; over all cells it does not."""
    low, high = (np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 11.0, 13.0, 12.0])), (np.array([6.0, 7.0, 8.0]), np.arange(3.0))
    for found in correlate_within([low, high, (np.ones(4), np.arange(4.0)), (np.arange(2.0), np.arange(2.0))]):
        reference = REFERENCES[found.method]
        assert found.value is not None
        assert found.value == pytest.approx(np.mean([reference(*low).statistic, reference(*high).statistic]), abs=1e-6)
        assert found.n == 7 and found.reading == DESCRIPTIVE
        every = [
            np.mean([reference(np.array(a), low[1]).statistic, reference(np.array(b), high[1]).statistic])
            for a in permutations(low[0])
            for b in permutations(high[0])
        ]
        assert found.p == pytest.approx(2 * np.mean(np.array(every) >= found.value - 1e-6), abs=0.02)
        assert found.value > 0.8 > 0 > reference(*(np.concatenate(side) for side in zip(low, high, strict=True))).statistic
    assert {found.value for found in correlate_within([(np.ones(4), np.arange(4.0))])} == {None}


def test_planted_grid(planted) -> None:
    tables = planted(Shape(models=("m", "n"), pairs=4, strategies=("none", "GR_10", "LoRA")))
    rows = correlations(tables)
    assert rows.schema == SCHEMA
    scopes, targets = ("all", "m", "n", WITHIN), ("backward_transfer", "letters_test", "numbers_test")
    assert rows.height == len(scopes) * len(PREDICTORS) * len(targets) * len(METHODS)
    des = pick(rows, predictor="des", target="backward_transfer", method="spearman")
    mpd = pick(rows, predictor="mpd_phases", target="letters_test", method="spearman", model="n")
    assert des is not None and mpd is not None
    assert (des["n"], des["distinct_predictor"], des["reading"]) == (24, 4, DESCRIPTIVE)
    assert des["value"] > 0.5  # what is alike is kept
    within = pick(rows, predictor="des", target="backward_transfer", method="spearman", model=WITHIN)
    assert within is not None and within["value"] is None  # one data set pair has one similarity
    assert mpd["value"] == pytest.approx(-1.0)  # planted: what is lost is in proportion to the drift
    predictor = correlation.predictors(tables).filter(pl.col("cell") == "m/letters→multi-letters/none/0").to_dicts()[0]
    drift = 2 * (1 - 0.93)
    assert predictor["mpd_phases"] == pytest.approx(drift)
    assert predictor["kl_phase2"] == pytest.approx(0.9 * drift)
    assert predictor["variance_change"] == pytest.approx(4 * drift * np.mean((1 + np.arange(4)) ** 1.5))


def test_absent_values_leave_out_their_cells_alone(planted) -> None:
    rows = correlations(planted(Shape(pairs=4), without={"insight:kl:phase2", "phase2:TA:numbers_test"}))
    assert "kl_phase2" not in set(rows["predictor"])
    counts = dict(rows.filter(predictor="des", model="all").select("target", "n").rows())
    assert counts == {"letters_test": 12}  # a backward transfer with a hole is none
    with pytest.raises(NothingToDraw):
        correlations(planted(Shape(pairs=1), without={"insight:"}))
