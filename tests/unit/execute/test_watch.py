"""How a stage's task is watched, by a clock that is set by hand: no Ray runs, a task is known by when it ends and beats."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import NodeDiedError, RayTaskError, WorkerCrashedError

from cft_ray.errors import UserError
from cft_ray.execute import watch
from cft_ray.execute.attempt import DIED
from cft_ray.execute.watch import LEAST_HOURS, RETRIES, StoodStill, most_seconds, persistently
from cft_ray.execute.work import Work
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages.deaths import PREEMPTIONS

DONE = {"status": "done"}


@dataclass
class Task:
    """Ends after so many seconds, in a result or an error; beats at the given times. Seconds of its own."""

    ends: float
    result: Any = field(default_factory=lambda: dict(DONE))
    beats: tuple[float, ...] = ()
    begun: float = 0.0
    cancelled: float | None = None


class World:
    """Ray's part, the board's and the tables', by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *tasks: Task) -> None:
        self.now, self.tasks, self.running = 1000.0, list(tasks), None
        self.notes: list[str] = []
        self.recorded: list[str] = []
        self.killed: list[str] = []
        self.answers = True
        self.looks: list[float] = []
        monkeypatch.setattr(watch, "ray", self)
        monkeypatch.setattr(watch.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(watch, "record_stop", lambda work, reporter, why: self.recorded.append(why))

    def start(self) -> Task:
        self.running = self.tasks.pop(0)
        self.running.begun = self.now
        return self.running

    def wait(self, tasks: list[Task], timeout: float) -> tuple[list[Task], list[Task]]:
        (task,) = tasks
        self.looks.append(timeout)
        if task.cancelled is not None:
            return [task], []
        self.now = min(self.now + timeout, max(self.now, task.begun + task.ends))
        return ([task], []) if self.now >= task.begun + task.ends else ([], [task])

    def get(self, task: Task) -> Any:
        if isinstance(task.result, BaseException):
            raise task.result
        return task.result

    def cancel(self, task: Task, *, force: bool, recursive: bool) -> None:
        assert force and recursive
        task.cancelled = self.now - task.begun

    def get_actor(self, name: str) -> str:
        if name == "gone":
            raise ValueError("no such actor")
        return name

    def kill(self, actor: str, *, no_restart: bool) -> None:
        assert not no_restart
        self.killed.append(actor)

    def tell(self, fingerprint: str, values: dict[str, Any]) -> None:
        self.notes.append(values["note"])

    def beats(self, fingerprint: str) -> int | None:
        if not self.answers or self.running is None:
            return None
        return 7 + sum(self.running.begun + at <= self.now for at in self.running.beats)

    def watched(self, host: str | None = None, **resources: Any) -> dict[str, Any]:
        stage = Stage(DatasetSpec(toy="x", columns={}, languages=("en",)), label="x", resources=Resources(**resources))
        work = Work(stage, {}, "/storage", "study", "run", host=host)
        return persistently(self.start, work, None, self)  # type: ignore[arg-type]


def every(seconds: float, until: float) -> tuple[float, ...]:
    return tuple(seconds * n for n in range(1, int(until / seconds) + 1))


def test_the_longest_time_is_the_grids_or_twenty_estimates_and_a_day_at_least():
    stage = Stage(DatasetSpec(toy="x", columns={}, languages=("en",)), cost=10_000.0)
    assert most_seconds(stage) == 20 * 10_000.0
    small = Stage(stage.spec, cost=1.0)
    assert most_seconds(small) == 24 * 3600 == 3600 * LEAST_HOURS
    assert most_seconds(Stage(stage.spec, cost=1e9, resources=Resources(hours=0.5))) == 1800


def test_a_result_is_handed_on_and_what_is_no_death_is_raised(monkeypatch):
    assert World(monkeypatch, Task(3)).watched() == DONE
    found = {"status": "failed", "error": "no rows"}
    assert World(monkeypatch, Task(3, found)).watched() == found
    world = World(monkeypatch, Task(3, RayTaskError("f", "trace", UserError("of the task"))))
    with pytest.raises(RayTaskError):
        world.watched()
    assert not world.recorded and not world.notes


def test_a_process_that_dies_is_tried_again_twice(monkeypatch):
    dies = [Task(3, WorkerCrashedError()) for _ in range(RETRIES)]
    world = World(monkeypatch, *dies, Task(3))
    assert world.watched() == DONE and not world.recorded
    assert world.notes == ["its process died (1 of 3): tried again", "its process died (2 of 3): tried again"]
    world = World(monkeypatch, *dies, Task(3, WorkerCrashedError()), Task(3))
    found = world.watched()
    assert found["status"] == "failed" and "on every attempt" in found["error"] and "WorkerCrashedError" in found["error"]
    assert world.recorded == [DIED] and len(world.tasks) == 1


def test_lost_nodes_have_a_budget_of_their_own(monkeypatch):
    lost = [Task(1, NodeDiedError("gone")) for _ in range(PREEMPTIONS)]
    deaths = [Task(1, WorkerCrashedError()) for _ in range(RETRIES)]
    world = World(monkeypatch, *lost, *deaths, Task(1))
    assert world.watched() == DONE and world.notes[0] == "a node was lost (1): tried again" and len(world.notes) == 52
    world = World(monkeypatch, *lost, Task(1, NodeDiedError("gone")), Task(1))
    assert world.watched()["status"] == "failed" and len(world.tasks) == 1 and world.recorded == [DIED]


def test_work_over_its_time_is_ended_and_fails(monkeypatch):
    world = World(monkeypatch, Task(10_000, beats=every(5, 10_000)))
    task = world.tasks[0]
    found = world.watched(hours=0.5)
    assert found == {"status": "failed", "error": "its work took longer than 30 min, and was ended (resources.dataset.hours)"}
    assert world.recorded == [found["error"]] and task.cancelled == pytest.approx(1805 + 5, abs=5)
    world = World(monkeypatch, Task(1799, beats=every(5, 1799)))
    assert world.watched(hours=0.5) == DONE


def test_its_time_begins_with_its_first_beat(monkeypatch):
    """What it waits for room, or for another run, is not its time, however long."""
    world = World(monkeypatch, Task(9_000, beats=(7300.0, 8900.0)))
    assert world.watched(hours=0.5, still_minutes=60) == DONE
    world = World(monkeypatch, Task(90_000))
    assert world.watched(hours=0.5, still_minutes=1) == DONE, "what never began neither stands still nor takes long"


def test_work_that_stands_still_is_killed_and_tried_again(monkeypatch):
    still = Task(9_000, beats=(10.0, 100.0))
    world = World(monkeypatch, still, Task(200, beats=every(50, 200)))
    assert world.watched(still_minutes=2) == DONE
    assert still.cancelled is not None and 220 < still.cancelled <= 230
    assert world.recorded == ["its work made no progress for 2 min, and was ended (resources.dataset.still_minutes)"]
    assert world.notes == ["its process died (1 of 3): tried again"]
    always = [Task(9_000, beats=(10.0,)) for _ in range(3)]
    found = World(monkeypatch, *always).watched(still_minutes=0.5)
    assert found["status"] == "failed" and "made no progress for 30 s" in found["error"]
    slow = World(monkeypatch, Task(900, beats=every(119, 900)))
    assert slow.watched(still_minutes=2) == DONE and not slow.recorded


def test_a_board_that_does_not_answer_ends_nothing(monkeypatch):
    world = World(monkeypatch, Task(9_000, beats=(10.0,)))
    world.answers = False
    assert world.watched(still_minutes=1) == DONE


def test_it_is_looked_at_often_enough_for_short_limits(monkeypatch):
    given: list[tuple[dict[str, Any], float]] = [({}, 5.0), ({"still_minutes": 0.2}, 3.0), ({"hours": 8 / 3600}, 2.0)]
    for resources, seconds in given:
        world = World(monkeypatch, Task(1))
        world.watched(**resources)
        assert world.looks == [pytest.approx(seconds)]


@pytest.mark.parametrize(("host", "killed"), [(None, []), ("run-host-1", ["run-host-1"]), ("gone", [])])
def test_the_actor_that_works_for_it_goes_with_it(monkeypatch, host, killed):
    world = World(monkeypatch, Task(9_000, beats=(1.0,)), Task(1))
    assert world.watched(host, still_minutes=1) == DONE and world.killed == killed
    assert 60.0 in world.looks, "its end is waited for"


def test_who_stood_still_says_so():
    assert watch.is_death(StoodStill("x")) and watch.lost(StoodStill("stood still\nmore")).endswith("StoodStill: stood still")


@pytest.mark.parametrize(
    ("seconds", "said"), [(3600, "1 h"), (5400, "1.5 h"), (3599, "59.9833 min"), (60, "1 min"), (59, "59 s"), (0.5, "0.5 s")]
)
def test_spans(seconds, said):
    assert watch._span(seconds) == said


def test_a_board_that_answers_late_and_of_no_beat_has_begun_nothing(monkeypatch):
    world = World(monkeypatch, Task(9_000))
    answers = iter([None, 0, 0])
    monkeypatch.setattr(world, "beats", lambda fingerprint: next(answers, 0))
    assert world.watched(still_minutes=1, hours=0.1) == DONE and not world.recorded
