"""Ray's own processes on a machine that is busy: slow ones are started again, and what is said at the end is one sentence."""

from typing import Any

import pytest

from cft_ray.errors import UserError
from cft_ray.execute import cluster

DASHBOARD = """
The last 20 lines of /tmp/ray/session_x/logs/dashboard.log (it contains the error message from the dashboard):
2026-01-01 INFO head.py:341 -- Loaded 9 subprocess modules: [<object at 0x7f>]."""
SLOW = ["The current node timed out during startup. This could happen because some of the raylets failed.", DASHBOARD]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What each start says; None: it succeeds."""
    said: list[str | None] = []

    def init(**given: Any) -> str:
        words = said.pop(0)
        if words is not None:
            raise Exception(words)
        return "started"

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "prepare_temporary", lambda: None)
    return said


@pytest.mark.parametrize("words", SLOW)
def test_a_slow_start_is_tried_again(starts, words):
    starts += [words, words, None]
    assert cluster._start_local(2, 2**20) == "started" and starts == []


@pytest.mark.parametrize("words", SLOW)
def test_three_slow_starts_are_said_in_a_sentence(starts, words):
    starts += [words] * 4
    with pytest.raises(UserError, match="did not start within 30 s, 3 times") as raised:
        cluster._start_local(2, 2**20)
    assert len(starts) == 1 and "\n" not in raised.value.what and "busy" in str(raised.value.fix)


def test_another_failure_is_not_tried_again(starts):
    starts += ["no\nsuch device", None]
    with pytest.raises(UserError, match="Ray does not start: such device"):
        cluster._start_local(2, 2**20)
    assert starts == [None]
