"""The learning rate, by hand."""

import math

import pytest

from cft_ray.grid.settings import TrainingSettings
from cft_ray.training.schedule import learning_rate


def rates(steps, **changes):
    training = TrainingSettings(learning_rate=1.0, steps=steps, **changes)
    return [learning_rate(training, step, steps) for step in range(steps)]


def test_warm_up_is_linear_and_the_peak_follows():
    assert rates(20, warmup_steps=4)[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


def test_cosine_is_half_way_down_in_the_middle():
    values = rates(14, warmup_steps=4)
    assert values[9] == pytest.approx(0.5)
    assert values[13] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))


def test_linear_and_constant():
    assert rates(4, warmup_steps=0, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(4, warmup_steps=0, schedule="constant") == [1, 1, 1, 1]


def test_warm_up_longer_than_the_training_never_reaches_the_peak():
    assert rates(3, warmup_steps=10) == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("warmup", [0, 1, 7, 30])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_is_what_transformers_schedules_give(schedule, warmup):
    import torch
    from transformers import get_scheduler

    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    expected = []
    for _ in range(20):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert rates(20, warmup_steps=warmup, schedule=schedule) == pytest.approx(expected, abs=1e-12)
