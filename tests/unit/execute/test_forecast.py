"""The time that is left, against runs whose end is known because they are simulated.

The simulation is independent of the forecast: it knows the true seconds of every stage, which the plan's costs only hint at.
"""

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from cft_ray.execute.capacity import Capacity, Nodes
from cft_ray.execute.forecast import Forecast, Measured, _distance, _median, _Pace, _Running, share_done
from cft_ray.execute.schedule import Schedule, State
from cft_ray.grid.settings import GenerationSettings, ReplaySampling, Template, TrainingSettings
from cft_ray.plan.specs import DatasetSpec, EvaluateSpec, FinetuneSpec, ReplaySpec
from cft_ray.plan.stage import Resources, Stage

TOY = Template(name="toy")
ENGINE = ("evaluate", "replay")
Said = list[tuple[float, float | None]]


@dataclass
class Machine:
    """What the plan does not know.

    Args:
        cpus: of its one node.
        seconds: kind -> seconds for each unit of cost.
        start: kind -> seconds before a stage's work begins, where it finds nothing loaded.
        cold: kind -> seconds more whenever more stages of that kind (or that ask an engine) run at a time than ever before:
            another process imports.
        noise: standard deviation of the logarithm of a stage's seconds.
        beside: factor on the pace of a stage while others run.
        gap: seconds between an end and the start that follows.
        silent: kinds that tell no progress.
    """

    cpus: float = 2
    seconds: dict[str, float] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    cold: dict[str, float] = field(default_factory=dict)
    noise: float = 0.0
    beside: float = 1.0
    gap: float = 0.0
    silent: frozenset[str] = frozenset()

    def paced(self, factor: float, *kinds: str) -> "Machine":
        """One on which these kinds take this many times as long."""
        times = [
            {kind: each * (factor if kind in kinds else 1) for kind, each in found.items()}
            for found in (self.seconds, self.start, self.cold)
        ]
        return replace(self, seconds=times[0], start=times[1], cold=times[2])


def played(stages: list[Stage], machine: Machine, seed: int = 0, asked: float = 4.0, tick: float = 0.25) -> tuple[float, Said]:
    """(seconds that the run took, [(time, what was said to be left)]).

    Progress is looked at once a second; ``asked`` is the time between two questions.
    """
    rng = random.Random(seed)
    schedule = Schedule({stage.fingerprint: stage for stage in stages}, (), Capacity((Nodes(machine.cpus),)))
    forecast = Forecast(schedule)
    loading: dict[str, float] = {}
    work: dict[str, float] = {}
    whole: dict[str, float] = {}
    most: Counter[tuple[str, ...]] = Counter()
    hosts: set[str] = set()
    said: Said = []
    now, free_at = 0.0, 0.0
    while not schedule.finished:
        while now >= free_at and (key := schedule.next()) is not None:
            stage, host = schedule.stages[key], schedule.host(key)
            loading[key] = 0.0 if host in hosts else machine.start.get(stage.kind, 0.0)
            pool = ENGINE if stage.kind in ENGINE else (stage.kind,)
            at_once = sum(schedule.stages[other].kind in pool for other in schedule.running)
            if at_once > most[pool]:
                loading[key] += machine.cold.get(stage.kind, 0.0)
                most[pool] = at_once
            hosts |= {host} if host is not None else set()
            whole[key] = work[key] = stage.cost * machine.seconds.get(stage.kind, 1.0) * rng.lognormvariate(0, machine.noise)
            forecast.started(key, now)
        if abs(now - round(now)) < tick / 2:
            for key in schedule.running:
                if schedule.stages[key].kind not in machine.silent and work[key] < whole[key]:
                    forecast.progress(key, 1 - work[key] / whole[key], now)
            if now >= len(said) * asked:
                said.append((now, forecast.left(now)))
        now += tick
        pace = 1.0 if len(schedule.running) < 2 else machine.beside
        for key in schedule.running:
            if loading[key] > 0:
                loading[key] -= tick * pace
            else:
                work[key] -= tick * pace
            if work[key] <= 0:
                schedule.finish(key)
                forecast.ended(key, now)
                free_at = now + machine.gap
    return now, said


def worst(took: float, said: Said, since: float = 0.2) -> float:
    """The largest error of what was said after this share of the run, relative to what was left; nothing is asked of its end."""
    errors = [
        abs(left - (took - at)) / (took - at) for at, left in said if left is not None and since * took <= at <= 0.95 * took
    ]
    assert len(errors) >= 5
    return max(errors)


def known_from(took: float, said: Said) -> float:
    """From which share of the run on the time left was said without a break."""
    return max((at for at, left in said if left is None), default=0.0) / took


def data(name: str) -> Stage:
    return Stage(DatasetSpec(toy=name, columns={}, languages=("en",)), {}, label=name, cost=1)


def tuned(name: str, source: Stage, cost: float, seed: int = 0, cpus: float = 1) -> Stage:
    spec = FinetuneSpec(template=TOY, training=TrainingSettings(steps=max(1, round(cost))), seed=seed)
    return Stage(spec, {"data": source.fingerprint}, label=name, cost=cost, resources=Resources(cpus=cpus))


def after(name: str, model: Stage, source: Stage, cost: float, seed: int, **inputs: Stage) -> Stage:
    spec = FinetuneSpec(template=TOY, training=TrainingSettings(steps=max(1, round(cost))), seed=seed)
    roles = {"model": model.fingerprint, "data": source.fingerprint} | {role: made.fingerprint for role, made in inputs.items()}
    return Stage(spec, roles, label=name, cost=cost)


def scored(model: Stage, benchmark: str, cost: float = 1) -> Stage:
    spec = EvaluateSpec(benchmark=benchmark, ability="TA", tasks={"en": "t"}, metric="acc", generation=GenerationSettings())
    return Stage(spec, {"model": model.fingerprint}, label=f"{model.label} {benchmark}", cost=cost)


def replayed(model: Stage, source: Stage, cost: float = 1) -> Stage:
    spec = ReplaySpec(ratio=0.1, template=TOY, sampling=ReplaySampling(), seed=0)
    return Stage(spec, {"model": model.fingerprint, "prompts": source.fingerprint, "target": source.fingerprint}, cost=cost)


def smoke(pairs: int = 2, strategies: int = 5) -> list[Stage]:
    """A grid of the smoke grid's shape: a base, a Phase 1 for each pair, Phase 2 for each strategy, benchmarks of all."""
    sources = [data(f"data{index}") for index in range(4)]
    base = tuned("base", sources[0], 40)
    stages, models = [*sources, base], [base]
    for pair in range(pairs):
        phase1 = after(f"phase1 {pair}", base, sources[1], 15 + 7 * pair, pair)
        replay = replayed(phase1, sources[2])
        stages += [phase1, replay]
        models.append(phase1)
        for strategy in range(strategies):
            extra = {"replay": replay} if strategy == 0 else {}
            models.append(after(f"phase2 {pair} {strategy}", phase1, sources[3], 13, 10 * pair + strategy, **extra))
            stages.append(models[-1])
    return stages + [scored(model, benchmark) for model in models for benchmark in ("letters", "numbers", "languages")]


def one_after_the_other() -> list[Stage]:
    source = data("data")
    stages = [source, tuned("0", source, 40)]
    for index in range(1, 10):
        stages.append(after(str(index), stages[-1], source, 40, index))
    return stages


def wide() -> list[Stage]:
    """Trainings that do not wait for each other, of very different lengths."""
    source = data("data")
    return [source, *(tuned(str(index), source, cost, seed=index) for index, cost in enumerate([20, 40, 80] * 8))]


def tail() -> list[Stage]:
    """Short stages, and one long training that ends in a tail of its own."""
    source = data("data")
    long = [tuned("long", source, 40, seed=99)]
    for index in range(4):
        long.append(after(f"long {index}", long[-1], source, 100, index))
    return [source, *long, *(tuned(str(index), source, 20, seed=index) for index in range(8))]


LAPTOP = Machine(
    seconds={"dataset": 0.5, "finetune": 1.1, "evaluate": 1.2, "replay": 1.0},
    start={"finetune": 0.5, "evaluate": 0.2, "replay": 0.2},
    cold={"finetune": 7.0, "evaluate": 16.0, "replay": 16.0},
    gap=0.2,
)
"""as the smoke grid was seen to run on two cores"""


@pytest.mark.parametrize("shape", [smoke, one_after_the_other, wide, tail])
@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_within_a_quarter_from_a_fifth_on_however_wrong_the_plan_is(shape, scale):
    took, said = played(shape(), LAPTOP.paced(scale, *LAPTOP.seconds))
    assert worst(took, said) <= 0.25
    assert known_from(took, said) <= 0.35


@pytest.mark.parametrize("kind", ["finetune", "evaluate", "replay"])
@pytest.mark.parametrize("scale", [0.2, 5.0])
def test_within_a_third_where_one_kind_is_wrong_by_a_factor_of_five(kind, scale):
    """Not in the moments between the first stage of the kind, which is cold, and the second."""
    took, said = played(smoke(), LAPTOP.paced(scale, kind))
    assert worst(took, said, max(0.2, known_from(took, said) + 0.05)) <= 0.34


@pytest.mark.parametrize("seed", range(4))
def test_within_three_tenths_under_noise_and_where_neighbours_slow_each_other(seed):
    took, said = played(smoke(), replace(LAPTOP, noise=0.2, beside=0.75), seed)
    assert worst(took, said) <= 0.3


def test_within_a_quarter_where_no_stage_tells_its_progress():
    silent = frozenset({"finetune", "evaluate", "replay"})
    took, said = played(smoke(), replace(LAPTOP, silent=silent, start={}, cold={}))
    assert worst(took, said, max(0.2, known_from(took, said))) <= 0.25


def test_a_large_grid_on_many_cores():
    took, said = played(smoke(pairs=8, strategies=7), replace(LAPTOP, cpus=6, noise=0.1), asked=30)
    assert worst(took, said) <= 0.3 and known_from(took, said) <= 0.3  # four more engines will start at its end


def test_before_anything_of_the_main_kind_is_measured_nothing_is_said():
    stages = one_after_the_other()
    took, said = played(stages, Machine(silent=frozenset({"finetune"})), asked=1)
    first_end = stages[0].cost + stages[1].cost
    assert all(left is None for at, left in said if at < first_end)
    assert all(left is not None for at, left in said if at >= first_end)
    assert took == pytest.approx(401, abs=1)


def test_exact_where_nothing_is_hidden():
    """Three trainings beside each other on two CPUs, worked by hand: 10 | 10, then 10 alone."""
    source = data("data")
    stages = [tuned(str(index), source, 10, seed=index) for index in range(3)]
    schedule = Schedule({stage.fingerprint: stage for stage in [source, *stages]}, (source.fingerprint,), Capacity((Nodes(2),)))
    forecast = Forecast(schedule)
    running = [key for key in (schedule.next(), schedule.next()) if key is not None]
    for key in running:
        forecast.started(key, 0.0)
    assert forecast.left(0.0) is None
    for key in running:
        forecast.progress(key, 0.2, 30.0)
        forecast.progress(key, 0.7, 80.0)  # 100 s for all of it, after 10 s of loading
    assert forecast.left(80.0) == pytest.approx(30 + 110)
    assert forecast.left(90.0) == pytest.approx(20 + 110)


def test_a_failed_stage_is_no_measurement_and_what_it_skips_takes_no_time():
    source = data("data")
    first, other = tuned("a", source, 10), tuned("b", source, 10, seed=1)
    below = after("c", first, source, 1000, 2)
    schedule = Schedule(
        {each.fingerprint: each for each in (source, first, other, below)}, (source.fingerprint,), Capacity((Nodes(2),))
    )
    forecast = Forecast(schedule)
    for _ in range(2):
        key = schedule.next()
        assert key is not None
        forecast.started(key, 0.0)
    schedule.finish(first.fingerprint, "planted")
    forecast.ended(first.fingerprint, 3.0)
    assert forecast.left(3.0) is None
    forecast.progress(other.fingerprint, 0.0, 4.0)
    forecast.progress(other.fingerprint, 0.5, 10.0)
    assert schedule.states[below.fingerprint] == State.SKIPPED
    assert forecast.left(10.0) == pytest.approx(6.0)


def test_what_is_played_forward_leaves_the_schedule_as_it_is():
    stages = smoke()
    schedule = Schedule({stage.fingerprint: stage for stage in stages}, (), Capacity((Nodes(2),)))
    twin = Schedule({stage.fingerprint: stage for stage in stages}, (), Capacity((Nodes(2),)))
    forecast, order = Forecast(schedule), []
    while not schedule.finished:
        while (key := schedule.next()) is not None:
            forecast.started(key, 0.0)
            assert twin.next() == key
            order.append(key)
        forecast.left(0.0)
        assert schedule.states == twin.states
        for key in schedule.running:
            schedule.finish(key)
            twin.finish(key)
    assert len(order) == len(stages)


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({}, None),
        ({"done": 3}, None),
        ({"done": 3, "total": 0}, None),
        ({"done": 1, "total": 4}, 0.25),
        ({"done": 9, "total": 4}, 1),
    ],
)
def test_progress_of_a_stage(values, share):
    assert share_done(values) == share


@pytest.mark.parametrize(
    ("values", "weights", "middle"),
    [
        ([3.0], [1.0], 3.0),
        ([9.0, 1.0, 5.0], [1.0, 1.0, 1.0], 5.0),
        ([8.0, 2.0], [1.0, 1.0], 5.0),
        ([1.0, 2.0, 3.0, 10.0], [1.0, 1.0, 1.0, 1.0], 2.5),
        ([1.0, 2.0, 3.0], [1.0, 1.0, 5.0], 3.0),
        ([1.0, 2.0, 6.0], [1.0, 1.0, 2.0], 4.0),
    ],
)
def test_the_middle_of_weighted_values(values, weights, middle):
    assert _median(values, weights) == middle


def test_what_a_stage_of_another_cost_takes():
    """Its start stays what it was, its work goes with the cost."""
    assert Measured(cost=10.0, seconds=30.0, start=10.0).scaled(5.0) == 10.0 + 10.0
    assert _distance(2.0, 8.0) == _distance(8.0, 2.0) == pytest.approx(2 * _distance(1.0, 2.0)) and _distance(3.0, 3.0) == 0
    assert _distance(0.0, 1e-9) == 0


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({"done": -3, "total": 4}, 0.0),
        ({"done": 0, "total": 4}, 0.0),
        ({"done": "3", "total": 4}, None),
        ({"done": 3, "total": "4"}, None),
        ({"done": 1.5, "total": 3.0}, 0.5),
        ({"done": 1, "total": -2}, None),
    ],
)
def test_progress_that_is_none(values, share):
    assert share_done(values) == share


def test_the_pace_of_a_running_stage_and_when_its_work_began():
    """20 s after its start nothing was done, from 30 s to 80 s half of its work: 100 s for all, which began at 10 s."""
    running = _Running(since=100.0, fresh=True, cold=False, first=(130.0, 0.2), last=(180.0, 0.7))
    assert running.pace() == pytest.approx(100) and running.start() == pytest.approx(10)
    found = running.measured(cost=7.0, now=190.0)
    assert found is not None and (found.cost, found.cold) == (7.0, False)
    assert found.seconds == pytest.approx(90 + 20) and found.start == pytest.approx(10)
    late = running.measured(cost=7.0, now=300.0)
    assert late is not None and late.seconds == pytest.approx(200), "it is over its time: it may end now"
    early = replace(running, first=(101.0, 0.2))
    assert early.start() == 0.0, "no work is before the start"
    for unknown in (replace(running, last=(130.0, 0.2)), replace(running, last=(140.0, 0.29)), replace(running, first=None)):
        assert unknown.pace() is None and unknown.start() == 0.0 and unknown.measured(1.0, 200.0) is None
    assert replace(running, last=(140.0, 0.31)).pace() == pytest.approx(10 / 0.11)
    assert replace(running, first=(130.0, 0.0), last=(140.0, 0.1)).pace() == pytest.approx(100), "a tenth is enough"


def paced(*ended: tuple[Stage, bool, Measured]) -> _Pace:
    """What is expected once these have ended."""
    stages = [SOURCE, *(stage for stage, _, _ in ended)]
    schedule = Schedule({stage.fingerprint: stage for stage in stages}, (), Capacity((Nodes(9),)))
    forecast = Forecast(schedule)
    for stage, fresh, measured in ended:
        forecast._ended.setdefault((stage.kind, fresh), []).append(measured)
    return _Pace(forecast, 0.0)


SOURCE = data("source")
TRAINING = tuned("t", SOURCE, 20)


def test_what_finds_its_model_loaded_has_no_start():
    pace = paced((TRAINING, True, Measured(20.0, 30.0, 10.0)), (SOURCE, True, Measured(1.0, 1.0, 0.0)))
    assert pace.whole(TRAINING, fresh=True, cold=False) == (pytest.approx(30), True)
    assert pace.whole(TRAINING, fresh=False, cold=False) == (pytest.approx(20), True)
    assert pace.whole(replace(TRAINING, cost=40.0), fresh=False, cold=False) == (pytest.approx(40), True)


def test_where_no_progress_tells_the_start_the_work_goes_at_the_pace_of_others():
    """Two seconds a unit elsewhere: of 50 s for a cost of 20, ten were the start."""
    pace = paced((TRAINING, True, Measured(20.0, 50.0, 0.0)), (SOURCE, True, Measured(3.0, 6.0, 0.0)))
    assert pace.whole(TRAINING, fresh=False, cold=False) == (pytest.approx(40), True)
    quick = paced((TRAINING, True, Measured(20.0, 30.0, 0.0)), (SOURCE, True, Measured(3.0, 6.0, 0.0)))
    assert quick.whole(TRAINING, fresh=False, cold=False) == (pytest.approx(30), True), "it is quicker than others: no start"
    alone = paced((TRAINING, True, Measured(20.0, 50.0, 0.0)))
    assert alone.whole(TRAINING, fresh=False, cold=False) == (pytest.approx(50), True)


def test_a_kind_of_which_nothing_is_measured_goes_at_the_pace_of_others_and_does_not_count_as_known():
    pace = paced((SOURCE, True, Measured(3.0, 6.0, 0.0)), (SOURCE, True, Measured(1.0, 4.0, 0.0)))
    assert pace.whole(TRAINING, fresh=True, cold=False) == (pytest.approx(20 * 10 / 4), False)
    assert paced().whole(TRAINING, fresh=True, cold=False) == (20.0, False), "then at its cost"


def test_the_nearest_costs_and_the_latest_of_them_count():
    found = [(TRAINING, True, Measured(cost, seconds, 0.0)) for cost, seconds in ((100.0, 900.0), (20.0, 40.0), (20.5, 61.5))]
    pace = paced(*found)
    # Of 2 and 3 seconds a unit the later one weighs more.
    assert pace.whole(TRAINING, fresh=True, cold=False)[0] == pytest.approx(60)
    assert pace.whole(replace(TRAINING, cost=100.0), fresh=True, cold=False)[0] == pytest.approx(900)


def test_what_a_cold_stage_takes_more_is_expected_of_the_next_cold_one():
    warm, cold = Measured(20.0, 30.0, 0.0), Measured(20.0, 47.0, 0.0, cold=True)
    pace = paced((TRAINING, True, cold), (TRAINING, True, warm))
    assert pace.whole(TRAINING, fresh=True, cold=True)[0] == pytest.approx(47)
    assert pace.whole(TRAINING, fresh=True, cold=False)[0] == pytest.approx(30)
    other = paced((TRAINING, True, warm))
    assert other.whole(TRAINING, fresh=True, cold=True) == other.whole(TRAINING, fresh=True, cold=False)
    assert pace.pays("finetune", 17.1) and not pace.pays("finetune", 17.0) and pace.pays("other", 0.1)


def test_until_a_warm_one_has_ended_a_cold_one_says_what_its_work_takes():
    """Work of 40 s by its progress, and of 10 by the pace of others: the geometric mean, 20; the rest was paid once."""
    cold = Measured(10.0, 50.0, 10.0, cold=True)
    pace = paced((TRAINING, True, cold), (SOURCE, True, Measured(2.0, 2.0, 0.0)))
    assert pace.whole(replace(TRAINING, cost=10.0), fresh=True, cold=False)[0] == pytest.approx(20)
    assert pace.whole(replace(TRAINING, cost=10.0), fresh=True, cold=True)[0] == pytest.approx(50)
    silent = paced((TRAINING, True, replace(cold, start=0.0)), (SOURCE, True, Measured(2.0, 2.0, 0.0)))
    assert silent.whole(replace(TRAINING, cost=10.0), fresh=True, cold=False)[0] == pytest.approx(10), "then as planned"
    alone = paced((TRAINING, True, cold))
    assert alone.whole(replace(TRAINING, cost=10.0), fresh=True, cold=False)[0] == pytest.approx(50)
