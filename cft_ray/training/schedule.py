"""The learning rate as a pure function of the step, so that a resumed training has nothing to restore."""

import math

from cft_ray.grid.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Learning rate of an optimizer step.

    Linear warm-up over ``warmup_steps`` from 0 (the first step changes no weight), then the schedule from the peak down to 0
    at the end: what transformers' `get_cosine_schedule_with_warmup` and its like give, and so the `Trainer` and axolotl. A
    training no longer than its warm-up never reaches the peak.

    Args:
        settings: peak, warm-up length and schedule.
        step: 0 for the first.
        steps: optimizer steps of the whole training.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return settings.learning_rate * step / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    if settings.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    elif settings.schedule == "linear":
        factor = 1 - progress
    else:
        factor = 1.0
    return settings.learning_rate * factor
