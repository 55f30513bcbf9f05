"""Packs, deals, steps and learning rates by hand."""

import math

import numpy as np
import pytest

from cft_ray.grid.settings import TrainingSettings
from cft_ray.training.order import SampleOrder, deal, pack
from cft_ray.training.schedule import learning_rate


def test_packs_by_hand():
    lengths = np.array([5, 3, 2, 9, 4, 1])
    assert pack(np.arange(6), lengths, 7) == [[3], [0, 2], [4, 1], [5]]
    assert pack(np.arange(6), lengths, 100) == [[3, 0, 4, 1, 2, 5]]
    assert pack(np.array([1, 0]), np.array([4, 4]), 8) == [[1, 0]]
    # Into the fullest pack that still holds it.
    assert pack(np.arange(4), np.array([6, 4, 3, 4]), 10) == [[0, 1], [3, 2]]


@pytest.mark.parametrize(
    ("lengths", "ranks", "tokens", "padded", "dealt"),
    [
        ([5, 4, 3], 1, 12, False, [[[0, 1, 2]]]),
        ([5, 4, 3], 1, 11, False, [[[0], [1, 2]]]),
        ([5, 4, 3], 1, 7, False, [[[0], [1, 2]]]),
        ([5, 4, 3], 3, 100, False, [[[0]], [[1]], [[2]]]),
        ([5, 4, 3], 1, 14, True, [[[0, 1], [2]]]),
        ([5, 4, 3], 1, 15, True, [[[0, 1, 2]]]),
        ([9, 1], 1, 5, False, [[[0], [1]]]),
        ([1], 2, 5, False, [[[0]], [[]]]),
        ([3, 3, 3, 3], 2, 3, False, [[[0], [2]], [[1], [3]]]),
    ],
)
def test_deals_by_hand(lengths, ranks, tokens, padded, dealt):
    found = deal(lengths, ranks, tokens, padded=padded)
    if padded and len(dealt[0]) == 2:
        assert [sorted(place for micro in rank for place in micro) for rank in found] == [[0, 1, 2]] and len(found[0]) == 2
        for micro in found[0]:
            assert len(micro) * max(lengths[place] for place in micro) <= tokens
    elif lengths == [9, 1]:
        assert found in ([[[0], [1]]], [[[0, 1]]], [[[0], [1]]])
    else:
        assert found == dealt


@pytest.mark.parametrize(
    ("settings", "steps", "last", "epoch"),
    [
        ({"epochs": 2, "batch_size": 4}, 5, 4, 2.0),
        ({"epochs": 1, "batch_size": 4}, 3, 2, 1.0),
        ({"epochs": 3, "batch_size": 10}, 3, 10, 3.0),
        ({"steps": 3, "batch_size": 4}, 3, 4, 1.2),
        ({"steps": 1, "batch_size": 3}, 1, 3, 0.3),
    ],
)
def test_steps_of_ten_samples(settings, steps, last, epoch):
    order = SampleOrder(np.ones(10, dtype=int), TrainingSettings(**settings), 0)
    assert order.steps == steps and order.units_per_epoch == 10
    batches = [order.batch(step) for step in range(steps)]
    assert len(batches[-1]) == last and order.epoch(steps - 1) == pytest.approx(epoch)
    assert order.epoch(0) == pytest.approx(min(settings["batch_size"] / 10, epoch))
    drawn = [sample for batch in batches for sample in batch]
    for start in range(0, len(drawn) - 9, 10):
        assert sorted(drawn[start : start + 10]) == list(range(10))
    if len(drawn) == 20:
        assert drawn[:10] != drawn[10:]
    assert [order.batch(step) for step in reversed(range(steps))] == batches[::-1]


def test_the_order_is_what_it_was_when_first_written():
    """A training that is taken up must go on with the same samples under another version as well."""
    order = SampleOrder(np.ones(8, dtype=int), TrainingSettings(epochs=2, batch_size=8), 3)
    generators = [np.random.default_rng([3, epoch]).permutation(8).tolist() for epoch in (0, 1)]
    assert [order.batch(0), order.batch(1)] == generators
    packed = SampleOrder(np.array([4, 3, 3, 2]), TrainingSettings(epochs=1, batch_size=1, packing=6), 0)
    assert packed.units_per_epoch == 2 and packed.steps == 2
    assert sorted(sorted(packed.batch(step)) for step in range(2)) == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        ("cosine", 0, 0.0), ("cosine", 1, 0.5), ("cosine", 2, 1.0), ("cosine", 6, 0.5), ("cosine", 10, 0.0), ("constant", 9, 1.0),
        ("cosine", 4, 0.5 * (1 + math.cos(math.pi / 4))), ("linear", 4, 0.75), ("linear", 2, 1.0), ("constant", 1, 0.5),
    ],
)  # fmt: skip
def test_the_learning_rate_of_ten_steps(schedule, step, rate):
    settings = TrainingSettings(learning_rate=1.0, warmup_steps=2, schedule=schedule)
    assert learning_rate(settings, step, 10) == pytest.approx(rate)
    none = TrainingSettings(learning_rate=1.0, warmup_steps=0, schedule=schedule)
    assert learning_rate(none, 0, 10) == 1.0 and learning_rate(none, 0, 0) == 1.0
    longer = TrainingSettings(learning_rate=1.0, warmup_steps=4, schedule=schedule)
    assert [learning_rate(longer, each, 3) for each in range(3)] == [0.0, 0.25, 0.5]
