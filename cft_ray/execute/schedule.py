"""Which stage runs next: dependencies, the longest remaining path first, and what fits beside the running ones. Pure.

A stage is *waiting* until its inputs are done, then *ready*, *running*, and *done* or *failed*; what descends from a
failed stage is *skipped*, as is a stage that the plan says to skip. Of the ready stages that fit, the one with the
longest path to the end of the plan (sum of estimated costs) comes first, so that the plan ends early rather than in a
tail. A stage that does not fit now may be passed by smaller ones, but only `PATIENCE` times: then those wait until it
has started.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Mapping
from enum import StrEnum

from cft_ray.execute.capacity import Capacity
from cft_ray.plan.stage import Resources, Stage

PATIENCE = 16
"""stages that may start while a more urgent one waits for room"""


class State(StrEnum):
    """Of a stage in a run."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    CACHED = "cached"
    FAILED = "failed"
    SKIPPED = "skipped"


class Schedule:
    """The states of a plan's stages, and what to start next.

    Args:
        stages: fingerprint -> stage; every input must be in it.
        cached: fingerprints whose artifacts exist.
        capacity: what the cluster can hold.
        concurrent: most stages at a time; None: as many as fit.
    """

    def __init__(
        self, stages: Mapping[str, Stage], cached: Collection[str], capacity: Capacity, concurrent: int | None = None
    ) -> None:
        self.stages, self.capacity, self.concurrent = stages, capacity, concurrent
        self.errors: dict[str, str] = {}
        """failed or skipped fingerprint -> why"""
        self.states = {key: State.CACHED if key in cached else State.WAITING for key in stages}
        self.tally = Counter(self.states.values())
        """state -> how many stages"""
        self.costs = dict.fromkeys(State, 0.0)
        """state -> sum of estimated costs"""
        for key, stage in stages.items():
            self.costs[self.states[key]] += stage.cost
        self._users: dict[str, list[str]] = {key: [] for key in stages}
        for key, stage in stages.items():
            for source in set(stage.inputs.values()):
                self._users[source].append(key)
        self.remaining = self._remaining_paths()
        self._running: dict[str, Resources] = {}
        self._passed: dict[str, int] = {}
        self._ready: dict[Resources, list[tuple[float, int, str]]] = {}  # a heap per demand: few demands, many stages
        self._position = {key: index for index, key in enumerate(stages)}
        for key, stage in stages.items():
            if stage.skip is not None and self.states[key] == State.WAITING:
                self._skip(key, stage.skip)
        for key in stages:
            self._make_ready(key)

    def _remaining_paths(self) -> dict[str, float]:
        """Fingerprint -> cost of the longest path from its start to the plan's end."""
        order, open_inputs = [], {key: len(set(stage.inputs.values())) for key, stage in self.stages.items()}
        front = [key for key, count in open_inputs.items() if count == 0]
        while front:
            key = front.pop()
            order.append(key)
            for user in self._users[key]:
                open_inputs[user] -= 1
                if open_inputs[user] == 0:
                    front.append(user)
        assert len(order) == len(self.stages), "the plan has a cycle"
        remaining: dict[str, float] = {}
        for key in reversed(order):
            remaining[key] = self.stages[key].cost + max((remaining[user] for user in self._users[key]), default=0.0)
        return remaining

    def _available(self, key: str) -> bool:
        return all(self.states[source] in (State.DONE, State.CACHED) for source in self.stages[key].inputs.values())

    def _make_ready(self, key: str) -> None:
        if self.states[key] != State.WAITING or not self._available(key):
            return
        stage = self.stages[key]
        if short := self.capacity.shortage(stage.resources):
            self._fail(key, f"the cluster can never run it: {short}")
            return
        self._move(key, State.READY)
        heapq.heappush(self._ready.setdefault(stage.resources, []), (-self.remaining[key], self._position[key], key))

    def next(self) -> str | None:
        """Start a stage: its fingerprint, now running; None if nothing ready fits."""
        if self.concurrent is not None and len(self._running) >= self.concurrent:
            return None
        heads = sorted(((heap[0], need) for need, heap in self._ready.items() if heap), key=lambda head: head[0])
        waiting: list[tuple[str, Resources]] = []
        for (_, _, key), need in heads:
            if self.capacity.holds([*self._running.values(), need]):
                if any(self._passed.get(other, 0) >= PATIENCE and _compete(wanted, need) for other, wanted in waiting):
                    continue
                for other, wanted in waiting:
                    if _compete(wanted, need):
                        self._passed[other] = self._passed.get(other, 0) + 1
                heapq.heappop(self._ready[need])
                self._passed.pop(key, None)
                self._running[key] = need
                self._move(key, State.RUNNING)
                return key
            waiting.append((key, need))
        return None

    def finish(self, key: str, error: str | None = None) -> None:
        """A running stage has ended; with an error, all that descends from it is skipped."""
        del self._running[key]
        if error is not None:
            self._fail(key, error)
            return
        self._move(key, State.DONE)
        for user in self._users[key]:
            self._make_ready(user)

    def make_again(self, lost: str, user: str) -> None:
        """``user``, running, found the artifact of its input ``lost`` damaged: both go back."""
        del self._running[user]
        self._move(user, State.WAITING)
        for key in [lost, *(key for key in self._users[lost] if self.states[key] == State.READY)]:
            if self.states[key] == State.READY:
                heap = self._ready[self.stages[key].resources]
                heap.remove((-self.remaining[key], self._position[key], key))
                heapq.heapify(heap)
            if self.states[key] in (State.READY, State.DONE, State.CACHED):
                self._move(key, State.WAITING)
        for key in (lost, user):
            self._make_ready(key)

    def _move(self, key: str, state: State) -> None:
        before, cost = self.states[key], self.stages[key].cost
        self.states[key] = state
        self.tally[before] -= 1
        self.tally[state] += 1
        self.costs[before] -= cost
        self.costs[state] += cost

    def _fail(self, key: str, error: str) -> None:
        self._move(key, State.FAILED)
        self.errors[key] = error
        self._skip_users(key, "failed")

    def _skip(self, key: str, reason: str) -> None:
        self._move(key, State.SKIPPED)
        self.errors[key] = reason
        self._skip_users(key, "is skipped")

    def _skip_users(self, key: str, what: str) -> None:
        below = list(self._users[key])
        while below:
            user = below.pop()
            if self.states[user] in (State.WAITING, State.READY):
                self._move(user, State.SKIPPED)
                self.errors[user] = f"needs {self.stages[key].label or key[:12]} ({self.stages[key].kind}), which {what}"
                below += self._users[user]

    @property
    def finished(self) -> bool:
        """Nothing runs, and nothing can become ready any more."""
        return not self._running and not any(self._ready.values())

    @property
    def running(self) -> list[str]:
        """Fingerprints of the running stages."""
        return list(self._running)


def _compete(waiting: Resources, other: Resources) -> bool:
    """Whether starting ``other`` can delay ``waiting``: they want a resource in common, GPUs if the waiting one does."""
    return other.gpus > 0 if waiting.gpus > 0 else other.cpus > 0 or other.gpus > 0
