"""Sample order, packing and dealing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft_ray.grid.settings import TrainingSettings
from cft_ray.training.order import SampleOrder, deal, pack

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 7), st.integers(1, 4), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_once_in_each_epoch(lengths, batch_size, epochs, seed):
    order = SampleOrder(np.array(lengths), TrainingSettings(epochs=epochs, batch_size=batch_size), seed)
    seen = list(itertools.chain.from_iterable(order.batch(step) for step in range(order.steps)))
    assert len(seen) == epochs * len(lengths)
    for epoch in range(epochs):
        assert sorted(seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))
    assert order.epoch(order.steps - 1) == epochs


def test_order_can_be_asked_for_at_any_step_and_depends_on_the_seed():
    lengths, training = np.arange(1, 51), TrainingSettings(steps=40, batch_size=8)
    forward = [SampleOrder(lengths, training, 3).batch(step) for step in range(40)]
    order = SampleOrder(lengths, training, 3)
    assert [order.batch(step) for step in reversed(range(40))] == forward[::-1]
    assert SampleOrder(lengths, training, 4).batch(0) != forward[0]
    assert all(len(batch) == 8 for batch in forward)


@given(LENGTHS, st.integers(50, 400))
@settings(max_examples=60, deadline=None)
def test_packs_hold_every_sample_and_only_what_fits(lengths, capacity):
    packs = pack(np.random.default_rng(0).permutation(len(lengths)), np.array(lengths), capacity)
    assert sorted(itertools.chain.from_iterable(packs)) == list(range(len(lengths)))
    assert all(len(one) == 1 or sum(lengths[sample] for sample in one) <= capacity for one in packs)


def test_packing_fills_packs_and_batches_count_packs():
    order = SampleOrder(np.array([60, 40, 70, 30, 50, 50]), TrainingSettings(epochs=2, batch_size=2, packing=100), 0)
    assert order.units_per_epoch == 3  # 60+40, 70+30, 50+50: best fit wastes nothing here
    assert order.steps == 3
    assert sum(len(order.batch(step)) for step in range(3)) == 12


@given(LENGTHS, st.integers(1, 8), st.integers(100, 600), st.booleans())
@settings(max_examples=100, deadline=None)
def test_dealing_loses_nothing_and_respects_the_limit(lengths, ranks, tokens, padded):
    dealt = deal(lengths, ranks, tokens, padded=padded)
    assert len(dealt) == ranks and len({len(micros) for micros in dealt}) == 1
    bins = [micro for micros in dealt for micro in micros]
    assert sorted(itertools.chain.from_iterable(bins)) == list(range(len(lengths)))
    limit = max(tokens, *lengths)
    for one in bins:
        sizes = [lengths[place] for place in one]
        assert sizes == sorted(sizes, reverse=True)
        assert (len(sizes) * max(sizes, default=0) if padded else sum(sizes)) <= limit


@pytest.mark.parametrize("ranks", [2, 8])
def test_ranks_get_about_the_same_number_of_tokens(ranks):
    lengths = np.random.default_rng(1).integers(10, 500, 128).tolist()
    loads = [sum(lengths[place] for micro in micros for place in micro) for micros in deal(lengths, ranks, 10**6)]
    assert max(loads) <= 1.02 * min(loads)
