"""The draw of prompts: permutations, prefixes, passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft_ray.errors import UserError
from cft_ray.strategies.selection import replay_count, select

SIZES = st.integers(1, 200)
SEEDS = st.integers(0, 2**32)


@settings(deadline=None)
@given(prompts=SIZES, count=st.integers(0, 700), seed=SEEDS)
def test_each_pass_draws_without_replacement(prompts, count, seed):
    rows, passes = select(prompts, count, seed)
    assert len(rows) == len(passes) == count
    assert (np.diff(passes) >= 0).all()
    for number in range(-(-count // prompts)):
        drawn = rows[passes == number]
        assert len(set(drawn.tolist())) == len(drawn) == min(prompts, count - number * prompts)
        assert all(0 <= row < prompts for row in drawn)


@settings(deadline=None)
@given(prompts=SIZES, fewer=st.integers(0, 300), more=st.integers(0, 300), seed=SEEDS)
def test_fewer_rows_are_a_prefix(prompts, fewer, more, seed):
    short, long = select(prompts, fewer, seed), select(prompts, fewer + more, seed)
    assert (short[0] == long[0][:fewer]).all()
    assert (short[1] == long[1][:fewer]).all()


def test_passes_and_seeds_differ():
    rows, _ = select(100, 200, seed=1)
    assert (rows[:100] != rows[100:]).any()
    assert (rows != select(100, 200, seed=2)[0]).any()
    assert (rows == select(100, 200, seed=1)[0]).all()


def test_the_draw_is_what_it_was_when_first_written():
    """A finished generation is found by its fingerprint, so the draw must never change under a given version."""
    rows, passes = select(7, 10, seed=0)
    assert rows.tolist() == [3, 2, 1, 6, 0, 4, 5, 4, 5, 1]
    assert passes.tolist() == [0] * 7 + [1] * 3


def test_every_row_is_equally_likely():
    first = [int(select(5, 1, seed)[0][0]) for seed in range(2000)]
    assert all(300 < first.count(row) < 500 for row in range(5))


def test_no_prompts():
    assert len(select(0, 0, 0)[0]) == 0
    with pytest.raises(UserError):
        select(0, 1, 0)


@pytest.mark.parametrize(
    ("ratio", "rows", "count"),
    [
        (0.05, 132_701, 6635),
        (0.10, 132_701, 13_270),
        (0.05, 50, 3),
        (0.05, 30, 2),
        (0.05, 70, 4),
        (0.29, 100, 29),
        (1.0, 7, 7),
        (0.1, 4, 0),
        (0.1, 5, 1),
    ],
)
def test_counts_round_halves_up(ratio, rows, count):
    assert replay_count(ratio, rows) == count
