"""Patience with what is transient."""

import importlib.util
from typing import Any

import pytest

from cft_ray.storage import retry


def failing(times, error=None):
    left = [times]

    def call():
        if left[0] > 0:
            left[0] -= 1
            raise error or OSError("away")
        return "done"

    return call


def test_a_call_is_tried_until_it_succeeds(clock):
    assert retry.patiently(failing(12), lambda _: True, where="x") == "done"
    assert len(clock.pauses) == 12 and max(clock.pauses) <= retry.LONGEST and all(pause >= 0 for pause in clock.pauses)
    assert max(clock.pauses[6:]) > max(clock.pauses[:3])  # they grow


def test_processes_do_not_come_back_together(clock):
    for _ in range(20):
        retry.patiently(failing(6), lambda _: True, where="x")
    assert len(set(clock.pauses)) == len(clock.pauses)


def test_a_pause_may_be_anything_up_to_its_bound(clock):
    for _ in range(40):
        retry.patiently(failing(1), lambda _: True, where="x")
    assert min(clock.pauses) < retry.FIRST / 4 and 3 * retry.FIRST / 4 < max(clock.pauses) <= retry.FIRST


def test_the_setting_says_when_it_is_over(clock, monkeypatch):
    monkeypatch.setenv(retry.VARIABLE, "100")
    with pytest.raises(OSError, match="away"):
        retry.patiently(failing(10**9), lambda _: True, where="x")
    assert clock.now == pytest.approx(100)
    with pytest.raises(OSError, match="away"):
        retry.patiently(failing(10**9), lambda _: True, where="x", seconds=7)
    assert clock.now == pytest.approx(107)


def test_ten_minutes_unless_said_otherwise(clock, monkeypatch):
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    with pytest.raises(OSError, match="away"):
        retry.patiently(failing(10**9), lambda _: True, where="x")
    assert clock.now == pytest.approx(600)


def test_a_command_gives_up_soon_on_a_storage_that_it_has_never_heard_of(clock, monkeypatch):
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    retry.impatient()
    for where, waited in (("x", 20), ("y", 20)):
        begun = clock.now
        with pytest.raises(OSError, match="away"):
            retry.patiently(failing(10**9), lambda _: True, where=where)
        assert clock.now - begun == pytest.approx(waited)
    assert retry.patiently(lambda: "there", lambda _: True, where="z") == "there"
    begun = clock.now
    with pytest.raises(OSError, match="away"):
        retry.patiently(failing(10**9), lambda _: True, where="z")
    assert clock.now - begun == pytest.approx(600)
    with pytest.raises(PermissionError):  # which is an answer
        retry.patiently(failing(1, PermissionError("no")), lambda _: False, where="x")
    begun = clock.now
    with pytest.raises(OSError, match="away"):
        retry.patiently(failing(10**9), lambda _: True, where="x")
    assert clock.now - begun == pytest.approx(600)


def test_who_is_no_command_is_patient_from_the_first(clock, monkeypatch):
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    found = importlib.util.spec_from_file_location("retry_as_it_is_imported", retry.__file__)
    assert found is not None and found.loader is not None
    fresh: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(fresh)
    fresh.time = clock
    with pytest.raises(OSError, match="away"):
        fresh.patiently(failing(10**9), lambda _: True, where="x")
    assert clock.now == pytest.approx(600)


def test_what_does_not_pass_is_not_tried_again(clock):
    with pytest.raises(PermissionError):
        retry.patiently(failing(1, PermissionError("no")), lambda error: not isinstance(error, PermissionError), where="x")
    assert not clock.pauses


def test_waiting_is_told_and_not_too_often(clock):
    said = []
    with retry.telling(said.append):
        retry.patiently(failing(3), lambda _: True, where="s3://bucket")
        assert not said  # a moment is not worth a word
        retry.patiently(failing(60), lambda _: True, where="s3://bucket", seconds=10_000)
    assert said and all("s3://bucket" in text and "away" in text for text in said)
    assert len(said) <= clock.now / retry.AGAIN + 1
