"""When a run will end: what is left of its schedule, played forward with the times that its stages have taken so far. Pure.

The plan's estimates are in nominal seconds: they say how two stages of a kind compare, and little about a machine. So a
stage is expected to take as long as the median of those of its kind that are nearest to it in cost, scaled by the ratio of
the costs, the last ones counting most; what passed before their first progress (imports, loading, compilation) is not
scaled. Of running stages, the pace of their progress counts as soon as a tenth is done. *Cold* stages pay for what others
find ready, in the main imports: the first of a kind (all that ask an engine count as one), and whenever more of a kind run
at a time than ever before, for then a process is new. What they took in excess is expected of the next cold one. Until a
warm one has ended, a cold one says what its work takes, and the plan says the rest. What is expected is then played through
the schedule itself, with its order and its admission, so that what fits beside each other is known and a long tail is seen.
Stages of several workers are a kind of their own.

A kind of which nothing is measured yet is taken at its nominal cost, by the pace of the others; while such kinds are more
than a tenth of what is left, nothing is foretold.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cft_ray.execute.schedule import Schedule, State
from cft_ray.plan.stage import Stage

LEAST_SPAN = 0.1
"""share of a stage's work between two looks from which its pace is taken"""
MOST_UNMEASURED = 0.1
"""share of the work left that kinds without a measurement may have"""
LATE = 0.1
"""a stage that is over its time is expected to take this share of its time more"""
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
    cold: bool = False
    """see the module"""

    def scaled(self, cost: float) -> float:
        """Seconds of a stage of this cost."""
        return self.start + (self.seconds - self.start) * cost / self.cost


@dataclass
class _Running:
    since: float
    fresh: bool
    """whether it finds nothing loaded"""
    cold: bool
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
        return Measured(cost, now - self.since + left, self.start(), self.cold)


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
    _most: dict[str, int] = field(default_factory=dict)
    """pool -> most of its stages that have run at a time"""
    _hosts: set[str] = field(default_factory=set)
    _last_end: float | None = None
    _gaps: list[float] = field(default_factory=list)

    def started(self, key: str, now: float) -> None:
        """A stage has been sent off."""
        host = self.schedule.host(key)
        pool = _pool(self.schedule.stages[key])
        at_once = 1 + sum(_pool(self.schedule.stages[other]) == pool for other in self._running)
        self._running[key] = _Running(now, host is None or host not in self._hosts, at_once > self._most.get(pool, 0))
        self._most[pool] = max(at_once, self._most.get(pool, 0))
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
        measured = Measured(stage.cost, now - running.since, running.start(), running.cold)
        self._ended.setdefault((_kind(stage), running.fresh), []).append(measured)

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
        hosts, most = set(self._hosts), dict(self._most)
        running = Counter(_pool(self.schedule.stages[key]) for _, key in ends)
        open_work: dict[str, float] = defaultdict(float)
        for key, state in simulated.states.items():
            if state in (State.WAITING, State.READY):
                stage = self.schedule.stages[key]
                open_work[_pool(stage)] += pace.whole(stage, fresh=False, cold=False)[0]
        at = 0.0
        while True:
            while (key := simulated.next()) is not None:
                host = simulated.host(key)
                pool = _pool(self.schedule.stages[key])
                running[pool] += 1
                cold = running[pool] > most.get(pool, 0) and pace.pays(pool, open_work[pool])
                most[pool] = max(running[pool], most.get(pool, 0))
                seconds, known = pace.whole(self.schedule.stages[key], host is None or host not in hosts, cold)
                if host is not None:
                    hosts.add(host)
                work, unmeasured = work + seconds, unmeasured + (0.0 if known else seconds)
                heapq.heappush(ends, (at + seconds, key))
            if not ends:
                break
            at, key = heapq.heappop(ends)
            simulated.finish(key)
            running[_pool(self.schedule.stages[key])] -= 1
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
                self._measured.setdefault((_kind(stage), running.fresh), []).append(measured)
        self._pools = {_kind(stage): _pool(stage) for stage in forecast.schedule.stages.values()}
        self._once: dict[str, float] = {}
        """pool -> seconds that a cold stage takes in addition"""
        for (kind, fresh), found in list(self._measured.items()):
            cold = [each for each in found if each.cold]
            if not cold:
                continue
            found[:] = [each for each in found if not each.cold]
            # A warm one that found its model loaded says more of one that does not than a cold one: imports take longer
            # than loading, until a warm one that loads has ended.
            like = found or [each for each in self._measured.get((kind, not fresh), []) if not each.cold]
            if not like:
                found.append(self._warm(kind, cold[-1]))
                like = found
            nearest = min(like, key=lambda each: _distance(each.cost, cold[-1].cost))
            pool = self._pools[kind]
            self._once[pool] = max(self._once.get(pool, 0.0), cold[-1].seconds - nearest.scaled(cold[-1].cost))
        self._measured = {asked: found for asked, found in self._measured.items() if found}
        scale = self._scale_of(lambda _: True)
        self._scale = 1.0 if scale is None else scale
        self._answers: dict[tuple[str, bool, float], tuple[float, bool]] = {}

    def whole(self, stage: Stage, fresh: bool, cold: bool) -> tuple[float, bool]:
        """(seconds that a stage takes from its start, whether that rests on its kind)."""
        seconds, known = self._warm_whole(stage, fresh)
        return seconds + (self._once.get(_pool(stage), 0.0) if cold else 0.0), known

    def pays(self, pool: str, work: float) -> bool:
        """Whether one more process of a pool is to be expected for this many seconds of work.

        Short stages hardly ever run beside each other: one has ended before the next has been sent off.
        """
        return work > self._once.get(pool, 0.0)

    def _warm_whole(self, stage: Stage, fresh: bool) -> tuple[float, bool]:
        asked = (_kind(stage), fresh, stage.cost)
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
        return _median(near, weights), True

    def _warm(self, kind: str, first: Measured) -> Measured:
        """What a stage like this cold one takes warm: between what was planned, at the pace of other kinds, and its work.

        The work of a cold stage has parts that are not paid again (compilation), the plan's estimate may be far off; of two
        such values the geometric mean is taken.
        """
        others = self._scale_of(lambda other: other != kind)
        if others is None:
            return first
        planned, worked = others * first.cost, first.seconds - first.start
        seconds = min(first.seconds, math.sqrt(planned * worked) if first.start else planned)
        return replace(first, seconds=seconds, start=max(0.0, first.start - (first.seconds - seconds)))

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
            return self.whole(stage, fresh=True, cold=False)
        spent = self._now - running.since
        by_progress = running.measured(stage.cost, self._now)
        if by_progress is not None and running.last is not None and running.last[1] < 1:
            return by_progress.seconds - spent, True
        seconds, known = self.whole(stage, running.fresh, running.cold)
        return max(seconds - spent, LATE * max(seconds, spent)), known


def _kind(stage: Stage) -> str:
    """Of which the stage's time can be compared."""
    return stage.kind if stage.resources.workers == 1 else f"{stage.kind} of several workers"


def _pool(stage: Stage) -> str:
    """Of the processes that the stage's work may land in: those with an engine serve all kinds that ask one."""
    return "engine" if stage.loads is not None else _kind(stage)


def _median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Of weighted values; the mean of both middle ones where they weigh the same."""
    ordered = sorted(zip(values, weights, strict=True))
    half, below = sum(weights) / 2, 0.0
    for index, (value, weight) in enumerate(ordered):
        below += weight
        if math.isclose(below, half):
            return (value + ordered[index + 1][0]) / 2
        if below > half:
            return value
    raise AssertionError


def _distance(one: float, other: float) -> float:
    return abs(math.log(max(one, 1e-9) / max(other, 1e-9)))


def share_done(values: Mapping[str, object]) -> float | None:
    """What a stage's values on the board say of its progress, 0 to 1; None: nothing."""
    done, total = values.get("done"), values.get("total")
    if isinstance(done, int | float) and isinstance(total, int | float) and total > 0:
        return min(1.0, max(0.0, done / total))
    return None
