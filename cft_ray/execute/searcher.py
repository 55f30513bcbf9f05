"""The plan's order as a Ray Tune `Searcher`: a trial is suggested once its stage's inputs are done and it fits.

Tune has no dependencies between trials (ray#23654) and admits by a trial's own resources, which here are next to
nothing: the work runs in what the trial starts. So both decisions are made by `cft_ray.execute.schedule`.

Tune starts an actor for a trial that finds none free, and ends it unused if another becomes free first. Starting one
takes a second of CPU: stages that are done sooner would each cost one. So a stage that would run beside others is held
back for `PACE_SECONDS`, in which one of those may end and leave its actor.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

from ray.tune.search import Searcher

from cft_ray.execute.schedule import Schedule
from cft_ray.execute.work import Work


PACE_SECONDS = 0.3
"""least time between two suggestions while a stage runs"""


class StageSearcher(Searcher):
    """Hands the stages of a schedule to Tune.

    Args:
        schedule: order and admission; this searcher is the one who changes it.
        work: fingerprint -> what its trial is told.
        changed: called with a fingerprint whenever its stage has started or ended.
        stopping: whether the experiment is being stopped: a trial that ends without a result has not failed then.
    """

    def __init__(
        self,
        schedule: Schedule,
        work: Callable[[str], Work],
        changed: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._schedule, self._work, self._changed, self._stopping = schedule, work, changed, stopping
        self._stage_of: dict[str, str] = {}
        self._suggested = -PACE_SECONDS

    def suggest(self, trial_id: str) -> dict[str, Any] | Literal["FINISHED"] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The next stage; None: nothing now; FINISHED: nothing will become ready (Tune would wait for ever)."""
        if self._stage_of and time.monotonic() - self._suggested < PACE_SECONDS:
            return None
        fingerprint = self._schedule.next()
        if fingerprint is None:
            return Searcher.FINISHED if self._schedule.finished else None  # pyright: ignore[reportReturnType]
        self._suggested = time.monotonic()
        self._stage_of[trial_id] = fingerprint
        self._changed(fingerprint)
        return {"work": self._work(fingerprint).encode()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A stage has ended. ``error``: its process died, or its nodes, more often than is tried again."""
        fingerprint = self._stage_of.pop(trial_id)
        if error or not result or "status" not in result:
            if self._stopping():
                return
            self._schedule.finish(fingerprint, "its process ended without a result, on every attempt (killed, out of memory?)")
        elif result["status"] == "lost input":
            self._schedule.make_again(result["lost"], fingerprint)
            self._changed(result["lost"])
        else:
            self._schedule.finish(fingerprint, result["error"] if result["status"] == "failed" else None)
        self._changed(fingerprint)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial has one result, its last."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is saved: what is finished is known from the artifacts."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored; see `save`."""
