"""What is seen of a run, with a board in this process: the live picture and the lines."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError
from rich.console import Console

from cft_ray.execute import progress
from cft_ray.execute.capacity import Capacity, Nodes
from cft_ray.execute.progress import Board, Display, _BoardActor, _describe, _duration
from cft_ray.execute.schedule import Schedule, State
from cft_ray.plan.specs import DatasetSpec, DriftSpec
from cft_ray.plan.stage import Stage


class Local:
    """The board's actor in this process; a call of it is done at once."""

    def __init__(self) -> None:
        self.board, self.told = _BoardActor(), 0

    @property
    def tell(self) -> Any:
        return self

    def remote(self, fingerprint: str, values: dict[str, Any], beat: bool) -> None:
        self.told += 1
        self.board.tell(fingerprint, values, beat)


class Look(Board):
    """A board that is looked at without Ray."""

    def look(self, running: list[str]) -> dict[str, dict[str, Any]]:
        return self._actor.board.look(running)


def stages(count: int) -> list[Stage]:
    return [Stage(DatasetSpec(toy=f"s{n}", columns={}, languages=("en",)), label=f"s{n}", cost=10.0) for n in range(count)]


def schedule(made: list[Stage], done: int = 0, cpus: float = 99) -> Schedule:
    graph = {each.fingerprint: each for each in made}
    return Schedule(graph, {each.fingerprint for each in made[:done]}, Capacity((Nodes(cpus=cpus),)))


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that the display sees."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def console(terminal: bool = False, width: int = 120) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def text_of(made: Console) -> str:
    return made.file.getvalue()  # type: ignore[attr-defined]


def test_values_come_together_and_those_of_ended_stages_are_forgotten(clock):
    board = Look(Local())
    board.tell("a", {"done": 1, "total": 4})
    clock[0] += 0.6
    board.tell("a", {"loss": 0.5})
    board.tell("b", {"note": "loading"})
    assert board.look(["a", "b"]) == {"a": {"done": 1, "total": 4, "loss": 0.5}, "b": {"note": "loading"}}
    assert board.look(["b", "c"]) == {"b": {"note": "loading"}}
    assert board.look(["a", "b"]) == {"b": {"note": "loading"}}


def test_values_that_come_too_soon_are_dropped_but_not_the_last(clock):
    local = Local()
    board = Look(local)
    for done in range(1, 10):
        board.tell("a", {"done": done, "total": 9})
        clock[0] += 0.2
    clock[0] = 2000.0
    for _ in range(3):
        board.tell("b", {"note": "x"})
        clock[0] += progress.TELL_SECONDS
    assert local.told - 3 == 4  # at 0, 0.6 and 1.2 s and, although it came 0.2 s after the one before, the last
    assert board.look(["a"])["a"]["done"] == 9


def test_an_unknown_total_ends_nothing(clock):
    local = Local()
    board = Look(local)
    board.tell("a", {"note": "x"})
    board.tell("a", {"note": "y"})
    board.tell("a", {"done": None, "total": None})
    assert local.told == 1
    board.tell("b", {"note": "x"})
    assert local.told == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ""),
        ({"done": 1200, "total": 3000, "unit": "steps", "loss": 0.83123}, "1,200/3,000 steps · loss 0.8312"),
        ({"done": 7}, "7"),
        ({"done": 0, "total": 3}, "0/3"),
        ({"tokens_per_second": 5210.4, "note": "compiling"}, "5,210 tokens/s · compiling"),
        ({"loss": None, "total": 5}, ""),
    ],
)
def test_values_in_words(values, said):
    assert _describe(values) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (187, "3m07s"), (3599, "59m59s"), (3600, "1h00m"), (7530, "2h05m")],
)
def test_durations(seconds, said):
    assert _duration(seconds) == said


def test_lines_of_what_starts_and_ends(clock):
    made = stages(4)
    plan, shown = schedule(made, done=1), console()
    display = Display(plan, Look(Local()), shown, "study")
    keys = [plan.next() for _ in range(3)]
    for key in keys:
        assert key is not None
        display.changed(key)
    clock[0] += 65
    names = [plan.stages[key].label for key in keys if key]
    plan.finish(str(keys[0]))
    display.changed(str(keys[0]))
    clock[0] += 5
    plan.finish(str(keys[1]), "out of memory\nsecond line")
    display.changed(str(keys[1]))
    lines = text_of(shown).splitlines()
    assert len(lines) == 5
    assert lines[0] == f"[0s] running: dataset {names[0]}  (1 of 4, time left unknown)"
    assert lines[3] == f"[1m05s] done: dataset {names[0]} in 1m05s  (2 of 4, time left unknown)"
    assert lines[4].startswith(f"[1m10s] failed: dataset {names[1]} in 1m10s: out of memory  (2 of 4, 1 failed or skipped, ")
    plan.finish(str(keys[2]))
    display.changed(str(keys[2]))
    assert text_of(shown).splitlines()[-1].endswith("(3 of 4, 1 failed or skipped)")


def rendered(display: Display, width: int = 120) -> list[str]:
    plain = console(width=width)
    plain.print(display.picture())
    return [line.rstrip() for line in text_of(plain).splitlines()]


def test_the_picture_counts_states_and_shows_running_stages(clock):
    made = stages(20)
    plan, board = schedule(made, done=2), Look(Local())
    display = Display(plan, board, console(), "study")
    keys = [str(plan.next()) for _ in range(16)]
    for key in keys:
        display.changed(key)
    plan.finish(keys[0])
    display.changed(keys[0])
    plan.finish(keys[1], "broke\nat line 2")
    display.changed(keys[1])
    board.tell(keys[2], {"done": 5, "total": 10, "unit": "steps"})
    clock[0] += 30
    display._values = board.look(plan.running)
    lines = rendered(display)
    assert lines[0] == "study"
    assert lines[1].split() == ["stage", "done", "cached", "running", "waiting", "failed", "skipped"]
    assert re.sub(r"[━╸╺ ]+", " ", lines[2]).split() == ["dataset", "1", "2", "14", "2", "1", "·"]
    assert sum(line.startswith("dataset s") for line in lines) == progress.SHOWN == 12
    assert lines[3] == "" and all(line.startswith("dataset s") for line in lines[4 : 4 + 12]), "without blank lines between"
    assert any("and 2 more" in line for line in lines)
    (first,) = [line for line in lines if line.startswith(f"dataset {plan.stages[keys[2]].label} ")]
    assert "5/10 steps" in first and "30s" in first and "━" in first
    (second,) = [line for line in lines if line.startswith(f"dataset {plan.stages[keys[3]].label} ")]
    assert "━" not in second and "30s" in second
    assert f"✗ dataset {plan.stages[keys[1]].label}: broke" in lines and "at line 2" not in "".join(lines)
    assert lines[-1].startswith("30s · 3 of 20, 1 failed or skipped, ")


def test_no_more_is_said_than_there_is(clock):
    made = stages(3)
    plan = schedule(made)
    display = Display(plan, Look(Local()), console(), "study")
    keys = [str(plan.next()) for _ in range(3)]
    for key in keys:
        display.changed(key)
    assert not any("more" in line or "✗" in line for line in rendered(display))


def test_the_time_left_is_told_once_it_is_known(clock):
    """Four equal stages one after the other: after two of 20 s, two are left."""
    made = stages(4)
    plan, shown = schedule(made, cpus=1), console()
    display = Display(plan, Look(Local()), shown, "study")
    for _ in range(2):
        key = str(plan.next())
        display.changed(key)
        clock[0] += 20
        plan.finish(key)
        display.changed(key)
    display._foretell()
    assert display._counts() == "2 of 4, about 40s left"
    clock[0] += 50
    assert display._counts() == "2 of 4, about 0s left"


def test_progress_on_the_board_reaches_the_forecast(clock):
    """One stage of two is half done after 30 s: 30 s for it and 60 for the other."""
    made = stages(2)
    plan, board = schedule(made, cpus=1), Look(Local())
    display = Display(plan, board, console(), "study")
    key = str(plan.next())
    display.changed(key)
    for share in (0, 25, 50):
        board.tell(key, {"done": share, "total": 100})
        display._values = board.look(plan.running)
        display._next_forecast = clock[0]
        display._foretell()
        clock[0] += 15
    assert display._counts() == "0 of 2, about 1m15s left"  # said at 30 s: 90 s; now it is 45 s


@pytest.mark.parametrize("terminal", [False, True])
def test_it_begins_with_its_title_and_ends_with_the_picture(terminal, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    made = stages(2)
    plan, board, shown = schedule(made), Look(Local()), console(terminal)
    keys = [str(plan.next()), str(plan.next())]
    with Display(plan, board, shown, "study [x]") as display:
        for key in keys:
            display.changed(key)
        board.tell(keys[0], {"note": "loading"})
        display._stop.wait(1.3)
        for key in keys:  # after the last look, as the end of a run is
            plan.finish(key)
    text = text_of(shown)
    assert "study [x]" in text and "loading" in text
    assert display._thread.is_alive() is False
    assert text.count("study [x]") == (1 if not terminal else text.count("study [x]"))
    assert ("running: dataset" in text) != terminal
    assert ("2 of 2" in text) == terminal


def test_a_beat_is_counted_apart_from_what_is_told_beside_it():
    board = Look(Local())
    board.tell("a", {"note": "another run works on it"})
    board.tell("a", {"done": 1, "total": 4}, beat=True)  # at once, and yet not dropped
    board.tell("a", {"note": "another run works on it"})
    assert board._actor.board.beats("a") == 1 and board.look(["a"])["a"] == {
        "note": "another run works on it",
        "done": 1,
        "total": 4,
    }


def test_kinds_stand_left_and_counts_right(clock):
    made = [*stages(12), Stage(DriftSpec(), label="d")]
    plan = schedule(made, done=11)
    lines = rendered(Display(plan, Look(Local()), console(), "study"))
    head, data, drift = lines[1:4]
    assert head.startswith("stage ") and data.startswith("dataset ") and drift.startswith("drift ")
    for column, cells in (("cached", ("11", "·")), ("waiting", ("1", "1"))):
        end = head.index(column) + len(column)
        assert [line[:end].split()[-1] for line in (data, drift)] == list(cells)
        assert all(line[end - 1] == cell[-1] for line, cell in zip((data, drift), cells, strict=True))


def test_the_board_answers_how_often_work_has_beaten(monkeypatch):
    """A board that does not answer in time knows nothing."""
    board = Board(Local())
    monkeypatch.setattr(progress.ray, "get", lambda asked, timeout: asked)
    board._actor.beats = SimpleNamespace(remote=lambda fingerprint: 3)
    board._actor.look = SimpleNamespace(remote=lambda running: {"a": {"done": 1}})
    assert board.beats("a") == 3 and board.look(["a"]) == {"a": {"done": 1}}

    def late(asked, timeout):
        assert timeout == 5
        raise GetTimeoutError("late")

    monkeypatch.setattr(progress.ray, "get", late)
    assert board.beats("a") is None and board.look(["a"]) == {}


def test_what_was_told_of_an_ended_stage_is_not_shown_where_it_runs_again(clock):
    made = stages(1)
    plan, board = schedule(made), Look(Local())
    display = Display(plan, board, console(), "study")
    key = str(plan.next())
    display.changed(key)
    board.tell(key, {"done": 5, "total": 10, "unit": "steps"})
    display._values = board.look(plan.running)
    assert any("5/10 steps" in line for line in rendered(display))
    clock[0] += 50
    plan._leave(key, whole=False)
    plan._move(key, State.WAITING)
    display.changed(key)
    plan._make_ready(key)
    assert plan.next() == key
    display.changed(key)
    lines = rendered(display)
    assert not any("5/10" in line for line in lines) and any(line.startswith("dataset s0") and " 0s" in line for line in lines)
