"""Which stage runs next: dependencies, the longest remaining path first, and what fits beside the running ones. Pure.

A stage is *waiting* until its inputs are done, then *ready*, *running*, and *done* or *failed*; what descends from a failed
stage is *skipped*, as is a stage that the plan says to skip. Of the ready stages that fit, the one with the longest path to
the end of the plan (sum of estimated costs) comes first, so that the plan ends early rather than in a tail. Before those come
the stages without inputs, which read what comes from outside: what is wrong there shows at once, and no kind waits for a data
set that only its end of the plan needs. Before all others comes the first stage of a kind, so that what is wrong with a kind
shows while little is spent, and once that has ended a second one, by which it is known what the kind takes where nothing has
to be imported any more. A stage that does
not fit now may be passed by smaller ones, but only `PATIENCE` times: then those wait until it has started.

Loading a model of 8 B parameters takes a minute, some benchmarks less. So a stage that could share the model of one that
has just ended (`Stage.loads`) comes before others of its kind, and has the same *host*: a place, by name, that keeps what
was loaded. A host without a stage still holds its resources: it is *released* as soon as nothing ready needs it, or what
comes next needs its room.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from itertools import count

from cft_ray.execute.capacity import Capacity
from cft_ray.plan.stage import Resources, Stage

_Entry = tuple[bool, float, int, str]
"""whether it has inputs, minus the remaining path, place in the plan, fingerprint"""
_Shared = tuple[tuple[str | None, str], Resources]
"""what stages load that can have the same host"""

PATIENCE = 16
"""stages that may start while a more urgent one waits for room"""
MADE_AGAIN = 2
"""times that an input which was found damaged is made again"""


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
        self._users: dict[str, list[str]] = {key: [] for key in stages}
        for key, stage in stages.items():
            for source in set(stage.inputs.values()):
                self._users[source].append(key)
        self.remaining = self._remaining_paths()
        self._running: dict[str, Resources] = {}
        self._passed: dict[str, int] = {}
        # A heap per demand: few demands, many stages. One that was started from the other heap stays until it is on top.
        self._ready: dict[Resources, list[_Entry]] = {}
        self._sharing: dict[_Shared, list[_Entry]] = {}
        self._untried: dict[str, list[_Entry]] = {stage.kind: [] for stage in stages.values()}
        """kind of which fewer than two stages have started -> what is ready of it"""
        self._tried: dict[str, str] = {}
        """kind -> its first stage, once it has started"""
        self._hosts: dict[str, str] = {}
        """running fingerprint -> its host"""
        self._idle: dict[str, _Shared] = {}
        """host -> what it has loaded"""
        self._released: list[str] = []
        self._host_names = count(1)
        self._made_again: Counter[str] = Counter()
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
        entry = (bool(stage.inputs), -self.remaining[key], self._position[key], key)
        heapq.heappush(self._ready.setdefault(stage.resources, []), entry)
        if stage.kind in self._untried:
            heapq.heappush(self._untried[stage.kind], entry)
        if shared := _shared(stage):
            heapq.heappush(self._sharing.setdefault(shared, []), entry)

    def next(self) -> str | None:
        """Start a stage: its fingerprint, now running; None if nothing ready fits."""
        if self.concurrent is not None and len(self._running) >= self.concurrent:
            return None
        heads = [(first, need) for need, heap in self._ready.items() if (first := self._first(heap))]
        heads.sort(key=lambda head: head[0])
        tries = [
            (kind in self._tried, first)
            for kind, heap in self._untried.items()
            if (kind not in self._tried or self.states[self._tried[kind]] != State.RUNNING) and (first := self._first(heap))
        ]
        heads[:0] = [(first, self.stages[first[3]].resources) for _, first in sorted(tries)]
        waiting: list[tuple[str, Resources]] = []
        for (*_, key), need in heads:
            if self.capacity.holds([*self._running.values(), need]):
                if any(self._passed.get(other, 0) >= PATIENCE and _compete(wanted, need) for other, wanted in waiting):
                    continue
                for other, wanted in waiting:
                    if _compete(wanted, need):
                        self._passed[other] = self._passed.get(other, 0) + 1
                again = self.stages[key].loads and self.stages[key].kind in self._tried
                return self._start((self._sharer(need) or key) if again else key)
            waiting.append((key, need))
        return None

    def _first(self, heap: list["_Entry"]) -> "_Entry | None":
        """The most urgent of a heap that is still ready."""
        while heap and self.states[heap[0][3]] != State.READY:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def _sharer(self, need: Resources) -> str | None:
        """The most urgent stage with this demand that an idle host has the model of."""
        entries = [self._first(self._sharing[shared]) for shared in self._idle.values() if shared[1] == need]
        return min((entry for entry in entries if entry is not None), default=(True, 0, 0, None))[3]

    def _start(self, key: str) -> str:
        stage = self.stages[key]
        if shared := _shared(stage):
            host = next((host for host, kept in self._idle.items() if kept == shared), None)
            if host is not None:
                del self._idle[host]
            self._hosts[key] = host or f"host-{next(self._host_names)}"
        self._running[key] = stage.resources
        self._passed.pop(key, None)
        if stage.kind in self._tried:
            self._untried.pop(stage.kind, None)
        self._tried.setdefault(stage.kind, key)
        self._move(key, State.RUNNING)
        useless = [host for host, kept in self._idle.items() if self._first(self._sharing[kept]) is None]
        while useless or (
            self._idle and not self.capacity.holds([*self._running.values(), *(need for _, need in self._idle.values())])
        ):
            host = useless.pop() if useless else next(iter(self._idle))
            del self._idle[host]
            self._released.append(host)
        return key

    def fork(self) -> "Schedule":
        """A schedule of its own at the same moment, to be played forward: what runs here runs there, on the same hosts."""
        states = dict(self.states)  # at once: the copy may be made in another thread than the one that moves stages
        open_ = (State.WAITING, State.READY, State.RUNNING)
        copy = Schedule(self.stages, {key for key, state in states.items() if state not in open_}, self.capacity, self.concurrent)
        for key, state in states.items():
            if state == State.RUNNING and copy.states[key] == State.READY:
                copy._start(key)
        copy._untried = {kind: heap for kind, heap in copy._untried.items() if kind in self._untried}
        copy._tried = dict(self._tried)
        copy._hosts, copy._idle = dict(self._hosts), dict(self._idle)
        copy._host_names = count(len(self.stages) + 1)  # no name that a host has here
        return copy

    def all_wait(self, some: Callable[[Stage], bool]) -> bool:
        """Whether there are such stages to be run, and each waits for others."""
        states = {self.states[key] for key, stage in self.stages.items() if some(stage)}
        return State.WAITING in states and states.isdisjoint((State.READY, State.RUNNING))

    def host(self, key: str) -> str | None:
        """Name of the place where a running stage finds its model, or leaves it for the next; None: it leaves nothing."""
        return self._hosts.get(key)

    def released(self) -> list[str]:
        """Hosts that have lost their last stage since this was asked last."""
        released, self._released = self._released, []
        return released

    def _leave(self, key: str, *, whole: bool) -> None:
        """A running stage has left its host, which is idle if it is whole and of use, else released."""
        del self._running[key]
        if (host := self._hosts.pop(key, None)) is None:
            return
        shared = _shared(self.stages[key])
        assert shared is not None
        if whole and self._first(self._sharing[shared]) is not None:
            self._idle[host] = shared
        else:
            self._released.append(host)

    def finish(self, key: str, error: str | None = None) -> None:
        """A running stage has ended; with an error, all that descends from it is skipped."""
        self._leave(key, whole=error is None)
        if error is not None:
            self._fail(key, error)
            return
        self._move(key, State.DONE)
        for user in self._users[key]:
            self._make_ready(user)

    def make_again(self, lost: str, user: str) -> None:
        """``user``, running, found the artifact of its input ``lost`` damaged: both go back, `MADE_AGAIN` times at most."""
        self._made_again[lost] += 1
        if self._made_again[lost] > MADE_AGAIN:
            stage = self.stages[lost]
            what = f"its input {stage.label or lost[:12]} ({stage.kind}) was found damaged {self._made_again[lost]} times"
            self.finish(user, f"{what}, however often it was made again: the storage or a disk does not keep what is written")
            return
        self._leave(user, whole=False)
        self._move(user, State.WAITING)
        for key in [lost, *(key for key in self._users[lost] if self.states[key] == State.READY)]:
            if self.states[key] in (State.READY, State.DONE, State.CACHED):
                self._move(key, State.WAITING)
        for key in (lost, user):
            self._make_ready(key)

    def _move(self, key: str, state: State) -> None:
        before = self.states[key]
        self.states[key] = state
        self.tally[before] -= 1
        self.tally[state] += 1

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
        return not self._running and not self.tally[State.READY]

    @property
    def running(self) -> list[str]:
        """Fingerprints of the running stages."""
        return list(self._running)


def _compete(waiting: Resources, other: Resources) -> bool:
    """Whether starting ``other`` can delay ``waiting``: they want a resource in common, GPUs if the waiting one does."""
    return other.gpus > 0 if waiting.gpus > 0 else other.cpus > 0 or other.gpus > 0


def _shared(stage: Stage) -> _Shared | None:
    return None if stage.loads is None else (stage.loads, stage.resources)
