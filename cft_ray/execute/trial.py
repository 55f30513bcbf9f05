"""The Tune trial of a stage: a light actor that takes a place in the experiment and nothing else.

The stage's code runs in a Ray task of its own, outside the trial's placement group: tasks and actors started from
inside the group would be bound to it, where no CPU is, and wait for ever. Ray keeps the task's process for the next
stage, with all that it has imported.
"""

from typing import Any

import ray
from ray import tune

from cft_ray.execute.attempt import run_stage
from cft_ray.execute.progress import Board
from cft_ray.metrics.reporter import Reporter


def trial(config: dict[str, Any], reporter: Reporter, board: Board) -> None:
    """The trainable: one stage (`cft_ray.execute.work.Work`, encoded); its result is the trial's only report."""
    task = ray.remote(run_stage).options(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT", name="stage")
    tune.report(ray.get(task.remote(config["work"], reporter, board)))
