"""Order, admission and failure, without Ray."""

import dataclasses
import random

import pytest

from cft_ray.execute.capacity import Capacity, Nodes
from cft_ray.execute.run import WARMED
from cft_ray.execute.schedule import MADE_AGAIN, PATIENCE, Schedule, State
from cft_ray.grid.schema import load_grid
from cft_ray.grid.settings import EngineSettings, GenerationSettings, JudgeSettings, ReplaySampling, Template
from cft_ray.plan.build import build
from cft_ray.plan.specs import DatasetSpec, EvaluateSpec, ReplaySpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages.remote import IMPORTS

ONE = Capacity((Nodes(cpus=1),))
TWO = Capacity((Nodes(cpus=2),))
GPU = Capacity((Nodes(cpus=4, gpus=1),))


def stage(name: str, *inputs: Stage, cost: float = 1.0, resources: Resources | None = None) -> Stage:
    spec = DatasetSpec(toy=name, columns={}, languages=("en",))
    roles = {f"role{index}": source.fingerprint for index, source in enumerate(inputs)}
    return Stage(spec, roles, label=name, cost=cost, resources=resources or Resources())


def scored(model: Stage, benchmark: str, cost: float = 1.0, gpus: float = 1.0) -> Stage:
    """A benchmark of a model: what shares its model with others."""
    spec = EvaluateSpec(benchmark=benchmark, ability="TA", tasks={"en": "t"}, metric="acc", generation=GenerationSettings())
    resources = Resources(cpus=1, gpus=gpus)
    return Stage(spec, {"model": model.fingerprint}, label=f"{model.label} {benchmark}", cost=cost, resources=resources)


def graph(*stages: Stage) -> dict[str, Stage]:
    return {each.fingerprint: each for each in stages}


def run_through(schedule: Schedule, fails: frozenset[str] = frozenset()) -> list[str]:
    """Labels in the order of their starts, each stage ending before the next starts when nothing else fits."""
    started, running = [], []
    while True:
        while (key := schedule.next()) is not None:
            started.append(schedule.stages[key].label)
            running.append(key)
        if not running:
            return started
        ended = running.pop(0)
        schedule.finish(ended, "planted" if schedule.stages[ended].label in fails else None)


def test_longest_remaining_path_comes_first():
    source = stage("source")
    short = stage("short", source, cost=5)
    head = stage("head", source, cost=1)
    tail = stage("tail", head, cost=10)
    assert run_through(Schedule(graph(source, short, head, tail), (), ONE)) == ["source", "head", "tail", "short"]


def test_stages_without_inputs_come_before_longer_paths():
    """A benchmark's items are needed at the end of a plan alone; what is wrong with them shows at its beginning."""
    rows, items = stage("rows", cost=2), stage("items", cost=1)
    training = stage("training", rows, cost=100)
    benchmark = stage("benchmark", training, items, cost=1)
    assert run_through(Schedule(graph(training, benchmark, rows, items), (), ONE)) == ["rows", "items", "training", "benchmark"]


def test_the_first_stages_of_a_kind_come_before_longer_paths():
    """The first before all, the second once the first has ended."""
    source = stage("source")
    long = [stage(f"long {index}", source, cost=100 - index) for index in range(3)]
    benchmarks = [scored(source, name, cost, gpus=0) for cost, name in enumerate("xy", 1)]
    order = run_through(Schedule(graph(source, *long, *benchmarks), (), ONE))
    assert order == ["source", "source y", "long 0", "source x", "long 1", "long 2"]


def test_what_the_plan_skips_is_not_started_and_no_failure():
    a, c = stage("a"), stage("c")
    spec = DatasetSpec(toy="b", columns={}, languages=("en",))
    b = Stage(spec, {"role": a.fingerprint}, label="b", skip="no judge")
    schedule = Schedule(graph(a, b, c), (), TWO)
    assert sorted(run_through(schedule)) == ["a", "c"]
    assert schedule.finished and schedule.states[b.fingerprint] == State.SKIPPED
    assert schedule.errors == {b.fingerprint: "no judge"} and not schedule.tally[State.FAILED]


def test_a_stage_waits_for_all_its_inputs():
    a, b = stage("a"), stage("b")
    c = stage("c", a, b)
    schedule = Schedule(graph(a, b, c), (), TWO)
    first, second = schedule.next(), schedule.next()
    assert {first, second} == {a.fingerprint, b.fingerprint} and schedule.next() is None
    schedule.finish(a.fingerprint)
    assert schedule.next() is None and not schedule.finished
    schedule.finish(b.fingerprint)
    assert schedule.next() == c.fingerprint
    schedule.finish(c.fingerprint)
    assert schedule.finished


def test_cached_stages_are_not_started_and_their_users_are_ready():
    a = stage("a")
    b = stage("b", a)
    schedule = Schedule(graph(a, b), {a.fingerprint}, ONE)
    assert run_through(schedule) == ["b"]
    assert schedule.states == {a.fingerprint: State.CACHED, b.fingerprint: State.DONE}


def test_a_failure_skips_descendants_only():
    a, other = stage("a"), stage("other")
    b = stage("b", a)
    c = stage("c", b, other)
    d = stage("d", other)
    schedule = Schedule(graph(a, other, b, c, d), (), ONE)
    assert set(run_through(schedule, frozenset({"a"}))) == {"a", "other", "d"}
    assert schedule.states[a.fingerprint] == State.FAILED and schedule.errors[a.fingerprint] == "planted"
    assert schedule.states[b.fingerprint] == schedule.states[c.fingerprint] == State.SKIPPED
    assert "a" in schedule.errors[c.fingerprint]
    assert schedule.states[d.fingerprint] == State.DONE and schedule.finished


def test_random_graphs_start_every_stage_once_after_its_inputs_and_within_capacity():
    rng = random.Random(7)
    for _ in range(20):
        stages: list[Stage] = []
        for index in range(40):
            inputs = rng.sample(stages, min(len(stages), rng.randrange(4)))
            cpus = rng.choice([0.5, 1, 2])
            stages.append(stage(str(index), *inputs, cost=rng.random(), resources=Resources(cpus=cpus)))
        schedule = Schedule(graph(*stages), (), Capacity((Nodes(cpus=3),)))
        running: dict[str, float] = {}
        done: set[str] = set()
        while not schedule.finished:
            while (key := schedule.next()) is not None:
                assert key not in done and set(schedule.stages[key].inputs.values()) <= done
                running[key] = schedule.stages[key].resources.cpus
                assert sum(running.values()) <= 3
            ended = rng.choice(list(running))
            del running[ended]
            done.add(ended)
            schedule.finish(ended)
        assert len(done) == 40
        assert schedule.tally[State.DONE] == 40


def test_what_can_never_fit_fails_in_words_and_the_rest_runs():
    big = stage("big", resources=Resources(workers=2, gpus=8))
    after, small = stage("after", big), stage("small")
    schedule = Schedule(graph(big, after, small), (), Capacity((Nodes(cpus=16, gpus=4, count=10),)))
    assert schedule.states[big.fingerprint] == State.FAILED and schedule.states[after.fingerprint] == State.SKIPPED
    assert "8 GPU" in schedule.errors[big.fingerprint] and "4 GPU" in schedule.errors[big.fingerprint]
    assert run_through(schedule) == ["small"]


def test_small_stages_pass_a_blocked_big_one_but_not_for_ever():
    first = stage("first", cost=1000)
    big = stage("big", cost=100, resources=Resources(cpus=2))
    small = [stage(f"small{index}", cost=0.001) for index in range(3 * PATIENCE)]
    schedule = Schedule(graph(first, big, *small), (), TWO)
    running = [schedule.next()]
    assert running == [first.fingerprint]
    passed = 0
    while (key := schedule.next()) is not None:
        assert key != big.fingerprint
        passed += 1
        schedule.finish(key)
    assert passed == PATIENCE
    schedule.finish(first.fingerprint)
    assert schedule.next() == big.fingerprint


def test_stages_without_gpu_never_hold_up_a_blocked_gpu_stage():
    nodes = Capacity((Nodes(cpus=64, gpus=1),))
    gpu = Resources(gpus=1)
    first, second = stage("first", cost=9, resources=gpu), stage("second", cost=8, resources=gpu)
    light = [stage(f"light{index}", cost=0.1) for index in range(2 * PATIENCE)]
    schedule = Schedule(graph(first, second, *light), (), nodes)
    started = []
    while (key := schedule.next()) is not None:
        started.append(key)
    assert len(started) == 1 + 2 * PATIENCE


def test_a_lost_input_is_made_again_before_its_users():
    a = stage("a")
    b, c = stage("b", a, cost=5), stage("c", a)
    schedule = Schedule(graph(a, b, c), {a.fingerprint}, ONE)
    assert schedule.next() == b.fingerprint
    schedule.make_again(a.fingerprint, b.fingerprint)
    assert run_through(schedule) == ["a", "b", "c"]


def test_an_input_that_is_damaged_again_and_again_ends_its_user():
    a = stage("a")
    other = stage("other")
    b, c = stage("b", a, cost=5), stage("c", other)
    schedule = Schedule(graph(a, other, b, c), {a.fingerprint, other.fingerprint}, TWO)
    made = 0
    assert schedule.next() == b.fingerprint
    while True:
        schedule.make_again(a.fingerprint, b.fingerprint)
        if schedule.states[b.fingerprint] == State.FAILED:
            break
        made += 1
        started = [schedule.next(), schedule.next()]
        assert a.fingerprint in started
        schedule.finish(a.fingerprint)
        assert schedule.next() == b.fingerprint
    assert made == MADE_AGAIN and "damaged" in schedule.errors[b.fingerprint]
    schedule.finish(c.fingerprint)
    assert schedule.finished


def test_benchmarks_of_one_model_follow_each_other_on_one_host():
    models = [stage(name) for name in "ab"]
    benchmarks = [scored(model, name, cost) for cost, name in enumerate("xyz", 1) for model in models]
    schedule = Schedule(graph(*models, *benchmarks), {model.fingerprint for model in models}, GPU)
    started = []
    while (key := schedule.next()) is not None:
        started.append((schedule.stages[key].label, schedule.host(key), schedule.released()))
        schedule.finish(key)
    order = [label for label, _, _ in started]
    assert order == ["a z", "a y", "a x", "b z", "b y", "b x"]
    (first,), (second,) = ({host for _, host, _ in part} for part in (started[:3], started[3:]))
    assert first != second and first is not None and second is not None
    assert [released for _, _, released in started] == [[], [], [], [first], [], []] and schedule.released() == [second]


def test_devices_at_the_same_time_are_hosts_of_their_own():
    models = [stage(name) for name in "ab"]
    benchmarks = [scored(model, name) for name in "xyz" for model in models]
    two = Capacity((Nodes(cpus=4, gpus=2),))
    schedule = Schedule(graph(*models, *benchmarks), {model.fingerprint for model in models}, two)
    running = [key for key in (schedule.next(), schedule.next()) if key is not None]
    hosts = {schedule.stages[key].label[0]: schedule.host(key) for key in running}
    assert set(hosts) == {"a", "b"} and len(set(hosts.values())) == 2 and schedule.next() is None
    while running:
        schedule.finish(running.pop(0))
        if (key := schedule.next()) is not None:
            assert schedule.host(key) == hosts[schedule.stages[key].label[0]]
            running.append(key)
    assert sorted(schedule.released()) == sorted(map(str, hosts.values()))


def test_of_two_hosts_with_one_model_the_one_without_work_is_released():
    model = stage("a")
    benchmarks = [scored(model, name) for name in "xyz"]
    two = Capacity((Nodes(cpus=4, gpus=2),))
    schedule = Schedule(graph(model, *benchmarks), {model.fingerprint}, two)
    running = [key for key in (schedule.next(), schedule.next()) if key is not None]
    hosts = [schedule.host(key) for key in running]
    for key in running:
        schedule.finish(key)
    last = schedule.next()
    assert last is not None and schedule.host(last) == hosts[0] and schedule.released() == [hosts[1]]


def test_what_is_more_urgent_comes_first_and_gets_the_room_of_an_idle_host():
    model, quick = stage("a"), stage("quick", cost=0.1)
    urgent = stage("urgent", quick, cost=50, resources=Resources(cpus=1, gpus=1))
    schedule = Schedule(graph(model, quick, urgent, scored(model, "x", 2), scored(model, "y")), {model.fingerprint}, GPU)
    first, second = schedule.next(), schedule.next()
    assert first is not None and first == quick.fingerprint and second is not None
    host = schedule.host(second)
    schedule.finish(first)
    schedule.finish(second)
    assert schedule.released() == [] and schedule.next() == urgent.fingerprint and schedule.host(urgent.fingerprint) is None
    assert schedule.released() == [host]
    schedule.finish(urgent.fingerprint)
    third = schedule.next()
    assert third is not None and schedule.host(third) not in (None, host)


def test_what_needs_no_room_of_an_idle_host_leaves_it_alone():
    model, quick = stage("a"), stage("quick", cost=0.1)
    light = stage("light", quick, cost=50)
    schedule = Schedule(graph(model, quick, light, scored(model, "x", 2), scored(model, "y")), {model.fingerprint}, GPU)
    first, second = schedule.next(), schedule.next()
    assert first is not None and second is not None
    host = schedule.host(second)
    schedule.finish(first)
    schedule.finish(second)
    assert schedule.next() == light.fingerprint
    third = schedule.next()
    assert third is not None and schedule.host(third) == host and schedule.released() == []


def test_a_host_is_not_used_again_after_a_failure():
    model = stage("a")
    schedule = Schedule(graph(model, scored(model, "x", 2), scored(model, "y")), {model.fingerprint}, GPU)
    first = schedule.next()
    assert first is not None
    host = schedule.host(first)
    schedule.finish(first, "planted")
    assert schedule.released() == [host]
    second = schedule.next()
    assert second is not None and schedule.host(second) != host


def test_other_engines_and_local_judges_share_no_host():
    model = stage("a")
    x, y = scored(model, "x"), scored(model, "y")
    assert x.loads == y.loads is not None
    assert x.loads != scored(stage("b"), "x").loads
    changes = [{"generation": GenerationSettings(max_length=5000)}, {"engine": EngineSettings(gpu_memory=0.5)}]
    for change in changes:
        assert dataclasses.replace(x, spec=x.spec.model_copy(update=change)).loads != x.loads
    local, endpoint = JudgeSettings(), JudgeSettings(model="gpt", base_url="http://127.0.0.1:1/v1")
    assert dataclasses.replace(x, spec=x.spec.model_copy(update={"judge": local})).loads is None
    assert dataclasses.replace(x, spec=x.spec.model_copy(update={"judge": endpoint})).loads == x.loads
    assert dataclasses.replace(x, spec=x.spec.model_copy(update={"backend": "hf"})).loads is None


def test_replay_by_one_engine_shares_the_models_host_and_by_several_none():
    model = stage("a")
    spec = ReplaySpec(ratio=0.1, template=Template(name="toy"), sampling=ReplaySampling(max_length=128))
    scores = scored(model, "x")
    replay = Stage(spec, {"model": model.fingerprint}, resources=scores.resources)
    assert replay.loads == scores.loads is not None
    several = dataclasses.replace(replay, resources=dataclasses.replace(scores.resources, workers=2))
    assert several.loads is None
    assert dataclasses.replace(replay, spec=spec.model_copy(update={"engine": EngineSettings(sequences=7)})).loads != scores.loads


def test_concurrency_can_be_limited():
    stages = [stage(str(index)) for index in range(5)]
    schedule = Schedule(graph(*stages), (), Capacity((Nodes(cpus=8),)), concurrent=2)
    assert schedule.next() and schedule.next() and schedule.next() is None


def test_a_cycle_is_refused():
    a = stage("a")
    looped = Stage(a.spec, {"role": "f" * 64}, label="loop")
    with pytest.raises(AssertionError, match="cycle"):
        Schedule({"f" * 64: looped}, (), ONE)


def test_a_failure_leaves_finished_and_cached_descendants_as_they_are():
    source = stage("source")
    cached, waiting, ended = stage("cached", source), stage("waiting", source), stage("ended", source)
    below = stage("below", cached)
    schedule = Schedule(graph(source, cached, waiting, ended, below), {cached.fingerprint}, TWO)
    assert {schedule.next(), schedule.next()} == {source.fingerprint, below.fingerprint}
    schedule.finish(below.fingerprint, None)
    schedule.states[ended.fingerprint] = State.DONE  # of another run, while this one went on
    schedule.finish(source.fingerprint, "planted")
    states = {schedule.stages[key].label: state for key, state in schedule.states.items()}
    assert states["source"] == State.FAILED and states["waiting"] == State.SKIPPED
    assert states["cached"] == State.CACHED and states["ended"] == State.DONE and states["below"] == State.DONE
    assert set(schedule.errors) == {source.fingerprint, waiting.fingerprint}


def test_the_host_of_a_stage_whose_input_was_lost_is_released():
    """Its process may hold what was read of the damaged one."""
    model = stage("model")
    one, other = scored(model, "one", cost=2), scored(model, "other")
    schedule = Schedule(graph(model, one, other), {model.fingerprint}, GPU)
    assert schedule.next() == one.fingerprint
    host = schedule.host(one.fingerprint)
    assert host is not None and schedule.released() == []
    schedule.make_again(model.fingerprint, one.fingerprint)
    assert schedule.released() == [host] and schedule.host(one.fingerprint) is None
    assert schedule.states[model.fingerprint] == State.READY and schedule.states[other.fingerprint] == State.WAITING


def test_engines_wait_while_none_of_their_stages_can_begin():
    def waits(schedule: Schedule) -> bool:
        return schedule.all_wait(lambda stage: stage.loads is not None)

    model, other = stage("a"), stage("b")
    schedule = Schedule(graph(model, other, scored(model, "x"), scored(other, "y")), set(), GPU)
    assert waits(schedule)
    first = schedule.next()
    assert first is not None and waits(schedule)
    schedule.finish(first)
    assert not waits(schedule)  # one is ready
    while (key := schedule.next()) is not None:
        if schedule.stages[key].loads is not None:
            assert not waits(schedule)  # one runs
        schedule.finish(key)
    assert not waits(schedule)  # all are through
    assert not waits(Schedule(graph(stage("a")), set(), GPU))


def test_the_smoke_grid_warms_a_trainings_process_and_an_engines(repository):
    plan = build(load_grid(repository / "grids/smoke.yaml", []))
    schedule = Schedule(plan.stages, set(), TWO)
    assert [sort for sort, of in WARMED.items() if schedule.all_wait(of)] == ["training", "engine"] == list(IMPORTS)


@pytest.mark.parametrize("label", ["named", ""])
def test_what_is_skipped_names_what_it_needs(label):
    source = dataclasses.replace(stage("source"), label=label)
    user, below = stage("user", source), stage("below", source)
    schedule = Schedule(graph(source, user, below), (), ONE)
    assert schedule.next() == source.fingerprint
    schedule.finish(source.fingerprint, "planted")
    wanted = f"needs {label or source.fingerprint[:12]} (dataset), which failed"
    assert {schedule.errors[each.fingerprint] for each in (user, below)} == {wanted}
    missing = dataclasses.replace(source, skip="no judge")
    skipped = Schedule(graph(missing, user), (), ONE)
    assert skipped.errors[user.fingerprint] == wanted.replace("failed", "is skipped")
    again = Schedule(graph(source, user), {source.fingerprint}, ONE)
    for _ in range(MADE_AGAIN):
        assert again.next() == user.fingerprint
        again.make_again(source.fingerprint, user.fingerprint)
        assert again.next() == source.fingerprint
        again.finish(source.fingerprint)
    assert again.next() == user.fingerprint
    again.make_again(source.fingerprint, user.fingerprint)
    assert again.states[user.fingerprint] == State.FAILED
    assert again.errors[user.fingerprint].startswith(
        f"its input {label or source.fingerprint[:12]} (dataset) was found damaged 3 times"
    )
