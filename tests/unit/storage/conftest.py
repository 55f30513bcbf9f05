"""A clock that a test sets."""

import pytest

from cft_ray.storage import retry


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What retries go by, and no memory of earlier ones."""
    made = Clock()
    monkeypatch.setattr(retry, "time", made)
    monkeypatch.setattr(retry, "_impatient", False)
    monkeypatch.setattr(retry, "_heard", set())
    return made
