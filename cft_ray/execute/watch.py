"""A stage's task, watched: it is ended when it is over its time or stands still, and tried again where that may help.

A stage *beats* whenever its work tells of progress (`RunContext.progress`), the first time when the work has the CPUs and
GPUs that it asked for: what it waits for them, or for another run, is not its time. One that has not beaten for long stands
still; its processes are killed and it is tried again, as after the death of a process. One that is over its time would be so
again: it fails. A lost node is no fault of the stage (a spot machine that is taken back): such losses have a budget of their
own.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from cft_ray.execute.attempt import DIED, cause, is_death, lost, record_stop
from cft_ray.execute.progress import Board
from cft_ray.execute.work import Work
from cft_ray.metrics.reporter import Reporter
from cft_ray.plan.stage import Stage
from cft_ray.stages.deaths import PREEMPTIONS, is_preemption

RETRIES = 2
"""further tries of a stage whose process died or stood still"""
LOOK_SECONDS = 5.0
"""between two looks at a running stage"""
LEAST_HOURS = 24.0
GENEROUS = 20.0
"""the time of a stage without a limit of its own: so many times its estimate, and at least `LEAST_HOURS`"""
END_SECONDS = 60.0
"""that a killed task has to end"""


class StoodStill(RayError):
    """A stage's work made no progress for long, and was killed."""


def most_seconds(stage: Stage) -> float:
    """The longest that a stage's work may take: as the grid says, or by its estimate."""
    hours = stage.resources.hours
    return 3600 * hours if hours is not None else max(3600 * LEAST_HOURS, GENEROUS * stage.cost)


def persistently(start: Callable[[], Any], work: Work, reporter: Reporter, board: Board) -> dict[str, Any]:
    """The result of a stage's task, which is started again as long as it may go better.

    Args:
        start: starts the task (`cft_ray.execute.attempt.run_stage`); called for each try.
        work: what it is told.
        reporter: of the tables.
        board: where the stage beats.

    Returns:
        as `run_stage`; ``failed`` where its process died, its work stood still, or it lost nodes, more often than is tried again.
    """
    deaths = preemptions = 0
    while True:
        try:
            return _watched(start(), work, reporter, board)
        except RayError as raised:
            error = cause(raised)
            if not is_death(error):
                raise
            lost_node = is_preemption(error)
            preemptions, deaths = preemptions + lost_node, deaths + (not lost_node)
            if deaths > RETRIES or preemptions > PREEMPTIONS:
                record_stop(work, reporter, DIED)
                return {"status": "failed", "error": lost(error)}
            again = f"a node was lost ({preemptions})" if lost_node else f"its process died ({deaths} of {RETRIES + 1})"
            board.tell(work.stage.fingerprint, {"note": f"{again}: tried again"})


def _watched(task: Any, work: Work, reporter: Reporter, board: Board) -> dict[str, Any]:
    stage = work.stage
    limit, quiet = most_seconds(stage), 60 * stage.resources.still_minutes
    look = min(LOOK_SECONDS, quiet / 4, limit / 4)
    begun = last = 0.0
    seen = board.beats(stage.fingerprint) or 0
    while not ray.wait([task], timeout=look)[0]:
        now, beats = time.monotonic(), board.beats(stage.fingerprint)
        if beats is not None and beats != seen:
            seen, last, begun = beats, now, begun or now
        if not begun:
            continue
        if now - begun > limit:
            what = f"its work took longer than {_span(limit)}, and was ended (resources.{stage.kind}.hours)"
            _end(task, work)
            record_stop(work, reporter, what)
            return {"status": "failed", "error": what}
        if now - last > quiet:
            what = f"its work made no progress for {_span(quiet)}, and was ended (resources.{stage.kind}.still_minutes)"
            _end(task, work)
            record_stop(work, reporter, what)
            raise StoodStill(what)
    return ray.get(task)


def _end(task: Any, work: Work) -> None:
    """Kill the processes of a stage: the task's, and the actor that works for it; what these have started goes with them."""
    if work.host is not None:
        with contextlib.suppress(ValueError, RayError):
            ray.kill(ray.get_actor(work.host), no_restart=False)
    ray.cancel(task, force=True, recursive=True)
    ray.wait([task], timeout=END_SECONDS)


def _span(seconds: float) -> str:
    hours, minutes = seconds / 3600, seconds / 60
    return f"{hours:g} h" if hours >= 1 else f"{minutes:g} min" if minutes >= 1 else f"{seconds:g} s"
