"""What a person sees while a plan runs: one live picture in a terminal, plain lines elsewhere.

Running stages leave their latest values on a *board*, a small Ray actor; the driver's display looks at it once a second.
Values may be lost, work may not: nothing waits for the board.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cft_ray.execute.forecast import Forecast, share_done
from cft_ray.execute.schedule import Schedule, State

TELL_SECONDS = 0.5
"""least time between two messages of one process about one stage"""
LINE_SECONDS = 10.0
"""time between lines about running stages where there is no terminal"""
FORECAST_SHARE = 0.05
"""most of the display's time that goes into the time that is left"""
SHOWN = 12
"""running stages shown at a time"""

STYLES = {
    State.DONE: "green",
    State.CACHED: "cyan",
    State.RUNNING: "bold yellow",
    State.FAILED: "bold red",
    State.SKIPPED: "red",
    State.READY: "white",
    State.WAITING: "dim",
}


class _BoardActor:
    def __init__(self) -> None:
        self._values: dict[str, dict[str, Any]] = {}
        self._beats: Counter[str] = Counter()

    def tell(self, fingerprint: str, values: dict[str, Any], beat: bool) -> None:
        self._values.setdefault(fingerprint, {}).update(values)
        self._beats[fingerprint] += beat

    def beats(self, fingerprint: str) -> int:
        return self._beats[fingerprint]

    def look(self, running: list[str]) -> dict[str, dict[str, Any]]:
        """Values of the running stages; what is told of others is forgotten."""
        self._values = {key: self._values[key] for key in running if key in self._values}
        return self._values


class Board:
    """The latest values of running stages; may be sent to any process of the Ray cluster."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._told: dict[tuple[str, bool], float] = {}

    @classmethod
    def start(cls) -> "Board":
        """A board that lives as long as this driver."""
        return cls(ray.remote(_BoardActor).options(num_cpus=0, max_restarts=-1).remote())

    def tell(self, fingerprint: str, values: dict[str, Any], *, beat: bool = False) -> None:
        """Leave values (any of done, total, unit, loss, tokens_per_second, note); returns at once.

        Values that come too soon after the last ones are dropped, unless they are the final ones (done = total).

        Args:
            fingerprint: of the stage.
            values: see above.
            beat: its work has gone on (`cft_ray.execute.watch`).
        """
        now = time.monotonic()
        final = values.get("done") is not None and values.get("done") == values.get("total")
        if final or now - self._told.get((fingerprint, beat), -TELL_SECONDS) >= TELL_SECONDS:
            self._told[fingerprint, beat] = now
            self._actor.tell.remote(fingerprint, values, beat)

    def beats(self, fingerprint: str) -> int | None:
        """How often a stage's work has beaten so far; None if the board does not answer in time."""
        try:
            return ray.get(self._actor.beats.remote(fingerprint), timeout=5)
        except RayError:
            return None

    def look(self, running: list[str]) -> dict[str, dict[str, Any]]:
        """Values of the running stages; empty if the board does not answer in time."""
        try:
            return ray.get(self._actor.look.remote(running), timeout=5)
        except RayError:
            return {}


class Display:
    """Shows a schedule while it runs; a context manager.

    Args:
        schedule: read only.
        board: values of the running stages.
        console: where to show; plain lines if it is no terminal.
        title: first line, e.g. the grid's name and the dashboard's address.
    """

    def __init__(self, schedule: Schedule, board: Board, console: Console, title: str) -> None:
        self._schedule, self._board, self._console, self._title = schedule, board, console, title
        self._values: dict[str, dict[str, Any]] = {}
        self._started: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._begin = self._last_line = self._next_forecast = time.monotonic()
        self._forecast = Forecast(schedule)
        self._end: float | None = None
        """when the run is expected to end; None: unknown"""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="display", daemon=True)
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        else:
            self._line(self._title)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._live is not None:
            self._live.update(self.picture(), refresh=True)
            self._live.stop()

    def changed(self, fingerprint: str) -> None:
        """A stage has started or ended. Called by the driver's main thread."""
        state = self._schedule.states[fingerprint]
        now = time.monotonic()
        if state == State.RUNNING:
            self._started[fingerprint] = now
        elif fingerprint in self._started:
            self._seconds[fingerprint] = now - self._started.pop(fingerprint)
            self._values.pop(fingerprint, None)
        (self._forecast.started if state == State.RUNNING else self._forecast.ended)(fingerprint, now)
        if self._live is None:
            took = f" in {_duration(self._seconds[fingerprint])}" if state in (State.DONE, State.FAILED) else ""
            error = self._schedule.errors.get(fingerprint, "").splitlines()
            because = f": {error[0]}" if error else ""
            self._line(f"[{_duration(now - self._begin)}] {state}: {self._name(fingerprint)}{took}{because}  ({self._counts()})")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        while not self._stop.wait(1.0):
            self._values = self._board.look(self._schedule.running)
            self._foretell()
            if self._live is not None:
                self._live.update(self.picture(), refresh=True)
            elif time.monotonic() - self._last_line >= LINE_SECONDS:
                self._last_line = time.monotonic()
                for fingerprint in self._schedule.running[:SHOWN]:
                    if values := self._values.get(fingerprint):
                        self._line(f"  {self._name(fingerprint)}: {_describe(values)}")

    def _counts(self) -> str:
        tally = self._schedule.tally
        finished = tally[State.DONE] + tally[State.CACHED]
        failed = tally[State.FAILED] + tally[State.SKIPPED]
        parts = [f"{finished} of {len(self._schedule.states)}"]
        parts += [f"{failed} failed or skipped"] if failed else []
        if not self._schedule.finished:
            left = None if self._end is None else max(0.0, self._end - time.monotonic())
            parts += [f"about {_duration(left)} left" if left is not None else "time left unknown"]
        return ", ".join(parts)

    def _foretell(self) -> None:
        for key, values in self._values.items():
            if (share := share_done(values)) is not None:
                self._forecast.progress(key, share, time.monotonic())
        if (begin := time.monotonic()) >= self._next_forecast:
            left = self._forecast.left(begin)
            self._end = None if left is None else begin + left
            self._next_forecast = begin + (time.monotonic() - begin) / FORECAST_SHARE

    def picture(self) -> Group:
        """The live picture: a line per kind with the states of its stages, then the running stages."""
        kinds: dict[str, list[State]] = {}
        for key, state in list(self._schedule.states.items()):
            kinds.setdefault(self._schedule.stages[key].kind, []).append(state)
        overview = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("stage", "", "done", "cached", "running", "waiting", "failed", "skipped"):
            overview.add_column(
                column, style="dim" if not column else None, justify="left" if column in ("stage", "") else "right"
            )
        for kind, states in kinds.items():
            finished = sum(state in (State.DONE, State.CACHED) for state in states)
            counts = [
                _count(states, State.DONE),
                _count(states, State.CACHED),
                _count(states, State.RUNNING),
                _count(states, State.WAITING, State.READY),
                _count(states, State.FAILED),
                _count(states, State.SKIPPED),
            ]
            overview.add_row(kind, ProgressBar(total=len(states), completed=finished, width=24), *counts)
        running = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for fingerprint in self._schedule.running[:SHOWN]:
            running.add_row(*self._running_row(fingerprint))
        if (more := len(self._schedule.running) - SHOWN) > 0:
            running.add_row("", "", "", f"and {more} more")
        failed = [
            Text(f"✗ {self._name(key)}: {why.splitlines()[0]}", style="red")
            for key, why in list(self._schedule.errors.items())
            if self._schedule.states[key] == State.FAILED
        ]
        spent = Text(f"{_duration(time.monotonic() - self._begin)} · {self._counts()}", style="dim")
        return Group(Text(self._title, style="bold"), overview, Text(), running, *failed[-SHOWN:], spent)

    def _name(self, fingerprint: str) -> str:
        stage = self._schedule.stages[fingerprint]
        return f"{stage.kind} {stage.label or fingerprint[:12]}"

    def _running_row(self, fingerprint: str) -> tuple[Any, ...]:
        values = self._values.get(fingerprint, {})
        seconds = time.monotonic() - self._started.get(fingerprint, time.monotonic())
        share = share_done(values)
        bar = ProgressBar(total=1.0, completed=share, width=24) if share is not None else Text("")
        name = Text(self._name(fingerprint), overflow="ellipsis", no_wrap=True)
        return name, bar, Text(_duration(seconds), style="dim"), Text(_describe(values), no_wrap=True)


def _count(states: list[State], *wanted: State) -> Text:
    count = sum(state in wanted for state in states)
    return Text(str(count) if count else "·", style=STYLES[wanted[0]] if count else "dim")


_SHOW: dict[str, Callable[[Any], str]] = {
    "loss": lambda value: f"loss {value:.4g}",
    "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
    "note": str,
}


def _describe(values: dict[str, Any]) -> str:
    """``120/300 steps · loss 0.83 · 5,210 tokens/s``."""
    parts = []
    if values.get("done") is not None:
        total = f"/{values['total']:,}" if values.get("total") is not None else ""
        parts.append(f"{values['done']:,}{total} {values.get('unit') or ''}".strip())
    parts += [show(values[name]) for name, show in _SHOW.items() if values.get(name) is not None]
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    """``42s``, ``3m07s``, ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
