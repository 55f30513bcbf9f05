"""The Tune trial of a stage: a light actor that takes a place in the experiment and nothing else.

The stage's code runs in a Ray task of its own, outside the trial's placement group: tasks and actors started from
inside the group would be bound to it, where no CPU is, and wait for ever. Ray keeps the task's process for the next
stage, with all that it has imported.
"""

from typing import Any

import ray
from ray import tune

from cft_ray.execute.attempt import lost, run_stage
from cft_ray.execute.progress import Board
from cft_ray.execute.watch import persistently
from cft_ray.execute.work import Work
from cft_ray.metrics.reporter import Reporter

# Made once: to Ray each new remote function is another sort of task, which gets a process of its own while the last one's
# is still kept for the last sort.
_RUN_STAGE = ray.remote(run_stage)


def trial(config: dict[str, Any], reporter: Reporter, board: Board) -> None:
    """The trainable: one stage (`cft_ray.execute.work.Work`, encoded); its result is the trial's only report."""
    task = _RUN_STAGE.options(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT", name="stage")
    try:
        work = Work.decode(config["work"])
        result = persistently(lambda: task.remote(config["work"], reporter, board), work, reporter, board)
    except Exception as raised:  # noqa: BLE001 - would come again in the same way: Tune's own tries are for the loss of this actor
        result = {"status": "failed", "error": lost(raised)}
    tune.report(result)
