"""Leases between processes, with dead and silent holders."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cft_ray.artifacts import lease
from cft_ray.artifacts.lease import Observer, holder, release_run
from cft_ray.errors import UserError
from cft_ray.storage.local import locked
from cft_ray.storage.root import Storage

NAME = "a" * 64


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(tmp_path)


def test_one_holder_at_a_time_and_attempts_count(storage):
    first = Observer(storage, NAME, run="one").claim()
    assert first is not None and first.attempt == 1 and first.abandoned is None
    other = Observer(storage, NAME, run="two")
    assert other.claim() is None
    seen = holder(storage, NAME)
    assert seen is not None and seen.run == "one"
    first.release()
    assert holder(storage, NAME) is None
    second = other.claim()
    assert second is not None and second.attempt == 2 and second.abandoned is None
    second.release()


def test_a_dead_process_loses_its_lease_at_once(storage):
    code = f"""
import os
from cft_ray.artifacts.lease import Observer
from cft_ray.storage.root import Storage
assert Observer(Storage({storage.uri!r}), {NAME!r}, run="dead").claim().attempt == 1
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert holder(storage, NAME) is None
    taken = Observer(storage, NAME).claim()
    assert taken is not None and taken.attempt == 2
    assert taken.abandoned is not None and taken.abandoned.run == "dead" and taken.abandoned.attempt == 1
    taken.release()


def plant(storage: Storage, beat: int) -> None:
    record = {"attempt": 3, "holder": "someone", "machine": "elsewhere", "pid": 1, "born": "1", "beat": beat, "run": "x"}
    with locked(storage.folder("leases")):  # as whoever changes a record does
        storage.write("leases", f"{NAME}.json", data=json.dumps(record).encode())


def test_a_silent_holder_elsewhere_is_judged_by_our_own_clock(storage):
    now = [100.0]
    plant(storage, beat=1)
    observer = Observer(storage, NAME, expiry=30, clock=lambda: now[0])
    assert observer.claim() is None
    now[0] += 29
    plant(storage, beat=2)  # a sign of life: the wait starts anew
    assert observer.claim() is None
    now[0] += 29
    assert observer.claim() is None
    now[0] += 2
    taken = observer.claim()
    assert taken is not None and taken.attempt == 4
    taken.release()


def test_a_live_holder_beats(storage, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    held = Observer(storage, NAME).claim()
    assert held is not None
    beats = set()
    while len(beats) < 3:
        seen = holder(storage, NAME)
        assert seen is not None
        beats.add(seen.beat)
        time.sleep(0.02)
    held.release()


def test_a_holder_that_was_taken_over_does_not_release_the_new_one(storage):
    held = Observer(storage, NAME).claim()
    plant(storage, beat=1)
    assert held is not None
    held.release()
    seen = holder(storage, NAME)
    assert seen is not None and seen.holder == "someone"


def test_a_lease_is_held_across_processes(storage):
    code = f"""
from cft_ray.artifacts.lease import Observer
from cft_ray.storage.root import Storage
import sys
sys.stdin.readline()
lease = Observer(Storage({storage.uri!r}), {NAME!r}).claim()
print("got" if lease else "no", flush=True)
sys.stdin.readline()
"""
    command = [sys.executable, "-c", code]
    crowd = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in crowd if process.stdout is not None]
    for process in crowd:
        process.communicate("\n")
    assert sorted(answers) == ["got", "no", "no", "no"]


def test_a_driver_gives_back_what_its_run_held_and_nothing_else(storage):
    other = Observer(storage, "b" * 64, run="other").claim()
    mine = Observer(storage, NAME, run="mine").claim()
    release_run(storage, [NAME, "b" * 64, "c" * 64], "mine")
    assert holder(storage, NAME) is None and holder(storage, "b" * 64) is not None
    assert other is not None and mine is not None
    other.release()
    mine.release()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"attempt": "x"}', b"\xff"])
def test_a_damaged_record_does_not_block(storage, data):
    storage.write("leases", f"{NAME}.json", data=data)
    taken = Observer(storage, NAME).claim()
    assert taken is not None
    taken.release()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    import errno
    import fcntl

    from cft_ray.artifacts.lease import check_locks

    check_locks(Storage(tmp_path))

    def without(handle, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(UserError, match="no file locks") as raised:
        check_locks(Storage(tmp_path))
    assert str(tmp_path) in str(raised.value)


def test_of_two_claims_at_once_one_waits_for_the_other(storage, monkeypatch):
    """Both are inside the claim together: the second reads only when the first has written, which the lock sees to."""
    together, real = threading.Barrier(2), lease._read

    def read(*arguments):
        found = real(*arguments)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.5)  # without the lock both have read a free lease here
        return found

    monkeypatch.setattr(lease, "_read", read)
    with ThreadPoolExecutor(2) as pool:
        claims = [pool.submit(Observer(storage, NAME).claim) for _ in range(2)]
        held = [claim.result() for claim in claims]
    monkeypatch.undo()
    assert sum(one is not None for one in held) == 1
    for one in held:
        if one is not None:
            one.release()


def test_a_holder_that_was_taken_over_stops_beating(storage, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    held = Observer(storage, NAME).claim()
    assert held is not None
    plant(storage, beat=7)
    time.sleep(0.3)
    seen = holder(storage, NAME)
    assert seen is not None and (seen.holder, seen.beat) == ("someone", 7)
    held._thread.join(1)
    assert not held._thread.is_alive()
