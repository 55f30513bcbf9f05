"""When a run will end: what is left of its schedule, played forward with the times that its stages have taken so far. Pure.

The plan's estimates are in nominal seconds: they say how two stages of a kind compare, and little about a machine. So a stage
is expected to take as long as those of its kind that are nearest to it in cost, scaled by the ratio of the costs, the last
ones counting most; what passed before their first progress (imports, loading, compilation) is not scaled. Of running stages,
the pace of their progress counts as soon as a tenth is done. The first stage of a kind, which pays for what the others find
ready, counts only until there is another. What is expected is then played through the schedule itself, with its order and
its admission, so that what fits beside each other is known and a long tail is seen.

A kind of which nothing is measured yet is taken at its nominal cost, by the pace of the others; while such kinds are more
than a third of what is left, nothing is foretold.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cft_ray.execute.schedule import Schedule, State
from cft_ray.plan.stage import Stage

LEAST_SPAN = 0.1
"""share of a stage's work between two looks from which its pace is taken"""
MOST_UNMEASURED = 1 / 3
"""share of the work left that kinds without a measurement may have"""
LATE = 0.1
"""a stage that is over its time is expected to take this share of its time more"""
FIRST_START = 0.5
"""share of the start of a kind's first stage that is taken to be paid once, before another has started"""
FADING = 0.7
"""weight of a measurement relative to that of the next one: how busy a machine is changes"""
ALIKE = 1.05
"""ratio of two costs up to which they are the same"""


@dataclass(frozen=True)
class Measured:
    """What one stage took, or will by its progress."""

    cost: float
    seconds: float
    start: float
    """seconds of these before its work began, as far as its progress tells; 0 where it does not"""
    first: bool = False
    """whether it was the first of its kind"""

    def scaled(self, cost: float) -> float:
        """Seconds of a stage of this cost."""
        return self.start + (self.seconds - self.start) * cost / self.cost


@dataclass
class _Running:
    since: float
    fresh: bool
    first_of_kind: bool
    """whether it is the first of its kind"""
    first: tuple[float, float] | None = None
    """(time, share done) when it first told"""
    last: tuple[float, float] | None = None

    def pace(self) -> float | None:
        """Seconds that its whole work takes; None before enough is done."""
        if self.first is None or self.last is None or self.last[1] - self.first[1] < LEAST_SPAN:
            return None
        return (self.last[0] - self.first[0]) / (self.last[1] - self.first[1])

    def start(self) -> float:
        """Seconds before its work began; 0 if unknown."""
        pace = self.pace()
        if pace is None or self.first is None:
            return 0.0
        return max(0.0, self.first[0] - self.since - self.first[1] * pace)

    def measured(self, cost: float, now: float) -> Measured | None:
        """By its progress, while it runs."""
        pace = self.pace()
        if pace is None or self.last is None:
            return None
        left = max(0.0, (1 - self.last[1]) * pace - (now - self.last[0]))
        return Measured(cost, now - self.since + left, self.start(), self.first_of_kind)


@dataclass
class Forecast:
    """Watches a schedule, and says when it will end.

    Args:
        schedule: read only.

    Times are seconds of any clock that does not jump.
    """

    schedule: Schedule
    _running: dict[str, _Running] = field(default_factory=dict)
    _ended: dict[tuple[str, bool], list[Measured]] = field(default_factory=dict)
    """by kind, and whether the stage found nothing loaded"""
    _kinds: set[str] = field(default_factory=set)
    """of which a stage has started"""
    _hosts: set[str] = field(default_factory=set)
    _last_end: float | None = None
    _gaps: list[float] = field(default_factory=list)

    def started(self, key: str, now: float) -> None:
        """A stage has been sent off."""
        host = self.schedule.host(key)
        kind = self.schedule.stages[key].kind
        self._running[key] = _Running(now, host is None or host not in self._hosts, kind not in self._kinds)
        self._kinds.add(kind)
        if host is not None:
            self._hosts.add(host)
        if self._last_end is not None:
            self._gaps.append(now - self._last_end)
            self._last_end = None

    def progress(self, key: str, share: float, now: float) -> None:
        """A running stage has done this share of its work, 0 to 1."""
        running = self._running.get(key)
        if running is None or (running.last is not None and share <= running.last[1]):
            return
        running.last = (now, share)
        if running.first is None:
            running.first = running.last

    def ended(self, key: str, now: float) -> None:
        """A stage has ended; it counts as measured if it was done."""
        running = self._running.pop(key, None)
        self._last_end = now
        if running is None or self.schedule.states[key] != State.DONE:
            return
        stage = self.schedule.stages[key]
        running.last = (now, 1.0)
        measured = Measured(stage.cost, now - running.since, running.start(), running.first_of_kind)
        self._ended.setdefault((stage.kind, running.fresh), []).append(measured)

    def left(self, now: float) -> float | None:
        """Seconds until the schedule is through; None if that cannot be said yet.

        Costs about as much as the schedule itself: a fraction of a millisecond for every stage that is left.
        """
        pace = _Pace(self, now)
        simulated = self.schedule.fork()
        ends: list[tuple[float, str]] = []
        work = unmeasured = 0.0
        for key in simulated.running:
            stage = self.schedule.stages[key]
            seconds, known = pace.running(key, stage)
            work, unmeasured = work + seconds, unmeasured + (0.0 if known else seconds)
            heapq.heappush(ends, (seconds, key))
        gap = sum(self._gaps) / len(self._gaps) if self._gaps else 0.0
        hosts = set(self._hosts)
        at = 0.0
        while True:
            while (key := simulated.next()) is not None:
                host = simulated.host(key)
                seconds, known = pace.whole(self.schedule.stages[key], host is None or host not in hosts)
                if host is not None:
                    hosts.add(host)
                work, unmeasured = work + seconds, unmeasured + (0.0 if known else seconds)
                heapq.heappush(ends, (at + seconds, key))
            if not ends:
                break
            at, key = heapq.heappop(ends)
            simulated.finish(key)
            if not simulated.finished:
                at += gap
        return None if work > 0 and unmeasured > MOST_UNMEASURED * work else at


class _Pace:
    """What stages are expected to take, by all that is measured at one moment."""

    def __init__(self, forecast: Forecast, now: float) -> None:
        self._now, self._forecast = now, forecast
        self._measured: dict[tuple[str, bool], list[Measured]] = {
            name: list(found) for name, found in dict(forecast._ended).items()
        }
        for key, running in dict(forecast._running).items():
            stage = forecast.schedule.stages[key]
            if (measured := running.measured(stage.cost, now)) is not None:
                self._measured.setdefault((stage.kind, running.fresh), []).append(measured)
        for found in self._measured.values():
            if (first := next((each for each in found if each.first), None)) is not None:
                found.remove(first)
                if not found:
                    once = FIRST_START * first.start
                    found.append(replace(first, seconds=first.seconds - once, start=first.start - once))
        scale = self._scale_of(lambda _: True)
        self._scale = 1.0 if scale is None else scale
        self._answers: dict[tuple[str, bool, float], tuple[float, bool]] = {}

    def whole(self, stage: Stage, fresh: bool) -> tuple[float, bool]:
        """(seconds that a stage takes from its start, whether that rests on its kind)."""
        asked = (stage.kind, fresh, stage.cost)
        if asked not in self._answers:
            self._answers[asked] = self._whole(*asked)
        return self._answers[asked]

    def _whole(self, kind: str, fresh: bool, cost: float) -> tuple[float, bool]:
        found = self._measured.get((kind, fresh))
        if not found and (other := self._measured.get((kind, not fresh))):
            found = other if fresh else [self._without_start(kind, each) for each in other]
        if not found:
            return cost * self._scale, False
        distances = [_distance(each.cost, cost) for each in found]
        nearest = min(distances) + math.log(ALIKE)
        near = [each.scaled(cost) for each, distance in zip(found, distances, strict=True) if distance <= nearest]
        weights = [FADING**age for age in reversed(range(len(near)))]
        return sum(weight * seconds for weight, seconds in zip(weights, near, strict=True)) / sum(weights), True

    def _without_start(self, kind: str, measured: Measured) -> Measured:
        """As it would have been with all loaded; where no progress told its start, its work went at the pace of other kinds."""
        start = measured.start
        if start == 0 and (others := self._scale_of(lambda other: other != kind)) is not None:
            start = max(0.0, measured.seconds - others * measured.cost)
        return replace(measured, seconds=measured.seconds - start, start=0.0)

    def _scale_of(self, wanted: Callable[[str], bool]) -> float | None:
        """Seconds for each unit of cost of what is measured of some kinds; None: nothing is."""
        found = [each for (kind, _), some in self._measured.items() if wanted(kind) for each in some]
        cost = sum(each.cost for each in found)
        return sum(each.seconds for each in found) / cost if cost > 0 else None

    def running(self, key: str, stage: Stage) -> tuple[float, bool]:
        """(seconds that a running stage still takes, whether that rests on its kind or its progress)."""
        running = self._forecast._running.get(key)
        if running is None:  # it has been sent off this moment
            return self.whole(stage, fresh=True)
        spent = self._now - running.since
        by_progress = running.measured(stage.cost, self._now)
        if by_progress is not None and running.last is not None and running.last[1] < 1:
            return by_progress.seconds - spent, True
        seconds, known = self.whole(stage, running.fresh)
        return max(seconds - spent, LATE * max(seconds, spent)), known


def _distance(one: float, other: float) -> float:
    return abs(math.log(max(one, 1e-9) / max(other, 1e-9)))


def share_done(values: Mapping[str, object]) -> float | None:
    """What a stage's values on the board say of its progress, 0 to 1; None: nothing."""
    done, total = values.get("done"), values.get("total")
    if isinstance(done, int | float) and isinstance(total, int | float) and total > 0:
        return min(1.0, max(0.0, done / total))
    return None
