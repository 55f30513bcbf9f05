"""The learning rate, by hand."""

import math

import pytest

from cft_ray.grid.settings import TrainingSettings
from cft_ray.training.schedule import learning_rate


def rates(steps, **changes):
    training = TrainingSettings(learning_rate=1.0, steps=steps, **changes)
    return [learning_rate(training, step, steps) for step in range(steps)]


def test_warm_up_is_linear_and_the_peak_follows():
    assert rates(20, warmup_steps=4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_is_half_way_down_in_the_middle():
    values = rates(14, warmup_steps=4)
    assert values[9] == pytest.approx(0.5)
    assert values[13] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))


def test_linear_and_constant():
    assert rates(4, warmup_steps=0, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(4, warmup_steps=0, schedule="constant") == [1, 1, 1, 1]


def test_warm_up_longer_than_the_training_leaves_the_peak_to_the_last_step():
    assert rates(3, warmup_steps=10) == pytest.approx([1 / 3, 2 / 3, 1])
