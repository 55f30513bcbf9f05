"""The plan's order as a Ray Tune `Searcher`: a trial is suggested once its stage's inputs are done and it fits.

Tune has no dependencies between trials (ray#23654) and admits by a trial's own resources, which here are next to
nothing: the work runs in what the trial starts. So both decisions are made by `cft_ray.execute.schedule`.

Tune keeps the actor of a trial that has ended for the next one; a trial that finds none gets a new one, which is thrown
away if another comes free before it has started. Starting one takes a second or two of CPU: a plan of short stages would
spend its time on that. So a stage for which no actor is kept waits until `QUIET_SECONDS` have passed without an end: then
none is likely to come free sooner than a new one starts.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from cft_ray.execute.attempt import lost
from cft_ray.execute.hosts import Hosts
from cft_ray.execute.schedule import Schedule
from cft_ray.execute.work import Work

QUIET_SECONDS = 2.0
"""about the time in which an actor starts"""


class Starts(Callback):
    """Tells a searcher which of its trials have their actor.

    Args:
        searcher: to be told.
    """

    def __init__(self, searcher: "StageSearcher") -> None:
        self._searcher = searcher

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune."""
        self._searcher.started(trial)


class StageSearcher(Searcher):
    """Hands the stages of a schedule to Tune.

    Args:
        schedule: order and admission; this searcher is the one who changes it.
        work: fingerprint and actor that keeps its model, if any -> what its trial is told.
        hosts: those actors.
        changed: called with a fingerprint whenever its stage has started or ended.
        stopping: whether the experiment is being stopped: a trial that ends without a result has not failed then.
    """

    def __init__(
        self,
        schedule: Schedule,
        work: Callable[[str, str | None], Work],
        hosts: Hosts,
        changed: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._schedule, self._work, self._hosts, self._changed, self._stopping = schedule, work, hosts, changed, stopping
        self._stage_of: dict[str, str] = {}
        self._without_actor: set[str] = set()
        self._trials: dict[str, Trial] = {}
        self._kept = False
        """whether Tune holds an actor that no trial has"""
        self._last_end = time.monotonic()

    def suggest(self, trial_id: str) -> dict[str, Any] | Literal["FINISHED"] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The next stage; None: nothing now; FINISHED: nothing will become ready (Tune would wait for ever)."""
        if self._stage_of and not self._kept and time.monotonic() - self._last_end < QUIET_SECONDS:
            return None
        fingerprint = self._schedule.next()
        self._hosts.release(self._schedule.released())
        if fingerprint is None:
            return Searcher.FINISHED if self._schedule.finished else None  # pyright: ignore[reportReturnType]
        self._kept = False
        self._without_actor.add(trial_id)
        self._stage_of[trial_id] = fingerprint
        self._changed(fingerprint)
        host = self._schedule.host(fingerprint)
        actor = None if host is None else self._hosts.named(host, self._schedule.stages[fingerprint].resources)
        return {"work": self._work(fingerprint, actor).encode()}

    def started(self, trial: Trial) -> None:
        """A trial has got its actor."""
        self._without_actor.discard(trial.trial_id)
        self._trials[trial.trial_id] = trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A stage has ended. ``error``: its process died, or its nodes, more often than is tried again."""
        fingerprint = self._stage_of.pop(trial_id)
        self._without_actor.discard(trial_id)
        trial = self._trials.pop(trial_id, None)
        self._kept = not error and not self._without_actor  # else a waiting trial takes it
        self._last_end = time.monotonic()
        if error or not result or "status" not in result:
            if self._stopping():
                return
            self._schedule.finish(fingerprint, _lost(trial))
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


def _lost(trial: Trial | None) -> str:
    """Why a stage has no result, from what Tune keeps of a trial's last error."""
    raised = trial.get_pickled_error() if trial is not None else None
    if raised is None:
        return "its process ended without a result, on every attempt (killed, out of memory?)"
    return lost(raised)
