"""Leases between processes, with dead and silent holders."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cft_ray.artifacts import lease
from cft_ray.artifacts.lease import LeaseLost, Observer, Record, holders, release_run
from cft_ray.errors import UserError
from cft_ray.storage.errors import StorageError
from cft_ray.storage.local import locked
from cft_ray.storage.root import Storage

NAME = "a" * 64


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(tmp_path)


def holder(storage: Storage, name: str = NAME) -> Record | None:
    """The record of a lease that is held by a process of this machine."""
    return holders(storage, [name], wait=0).get(name)


def record(storage: Storage) -> Record:
    """What the file holds."""
    found = lease._read(storage, NAME)
    assert found is not None
    return found[0]


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
    assert record(storage).holder == "someone"


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


def test_of_many_claims_at_once_one_succeeds(storage):
    for _ in range(5):  # free, absent the first time
        together = threading.Barrier(6)

        def claim(_, together=together):
            observer = Observer(storage, NAME)
            together.wait()
            return observer.claim()

        with ThreadPoolExecutor(6) as pool:
            held = [one for one in pool.map(claim, range(6)) if one is not None]
        assert len(held) == 1 and record(storage).holder == held[0].fence.holder
        held[0].release()
    assert record(storage).attempt == 5


def test_a_holder_that_was_taken_over_stops_beating(storage, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    held = Observer(storage, NAME).claim()
    assert held is not None
    plant(storage, beat=7)
    time.sleep(0.3)
    assert (record(storage).holder, record(storage).beat) == ("someone", 7) and held.lost
    held._thread.join(1)
    assert not held._thread.is_alive()


def test_who_was_taken_over_cannot_prove_it(storage, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 1000.0)  # the heartbeat is not what finds out
    held = Observer(storage, NAME).claim()
    assert held is not None
    held.prove()
    held.fence.prove()
    plant(storage, beat=1)
    with pytest.raises(LeaseLost):
        held.prove()
    with pytest.raises(LeaseLost):
        pickle.loads(pickle.dumps(held.fence)).prove()  # noqa: S301 -- our own bytes
    assert held.lost and record(storage).holder == "someone"


def test_a_stopped_process_that_goes_on_has_lost_its_lease(storage):
    """SIGSTOP past the lease, another takes over, SIGCONT: it proves nothing, beats no more, and gives nothing back."""
    code = f"""
import sys, time
from cft_ray.artifacts import lease
from cft_ray.storage.root import Storage
lease.BEAT = 0.05
held = lease.Observer(Storage({storage.uri!r}), {NAME!r}).claim()
held.prove()
print("held", flush=True)
sys.stdin.readline()
try:
    held.prove()
    print("still held")
except lease.LeaseLost:
    print("lost")
time.sleep(0.3)
held.release()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    observer = Observer(storage, NAME, expiry=0.3)
    deadline = time.monotonic() + 30
    while (taken := observer.claim()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert taken is not None and taken.attempt == 2 and taken.abandoned is not None
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate("go on\n", timeout=30)
    assert out == "lost\n" and process.returncode == 0
    taken.prove()
    assert record(storage).holder == taken.fence.holder
    taken.release()


def test_attempts_do_not_begin_anew_without_the_leases(storage, tmp_path):
    for number in (1, 2):
        held = Observer(storage, NAME).claim()
        assert held is not None and held.attempt == number
        held.release()
    shutil.rmtree(tmp_path / "leases")
    held = Observer(storage, NAME).claim()
    assert held is not None and held.attempt == 3
    held.release()


def test_a_number_that_another_has_is_not_taken(storage):
    """The leases were removed between another's claim and its number."""
    storage.write("attempts", NAME, "000001.json", data=b"{}")
    storage.write("leases", f"{NAME}.json", data=Record(attempt=0).encode())
    held = Observer(storage, NAME).claim()
    assert held is not None and held.attempt == 2 and record(storage).attempt == 2
    held.prove()
    held.release()


def test_a_holder_outlives_the_removal_of_the_leases(storage, tmp_path):
    held = Observer(storage, NAME).claim()
    shutil.rmtree(tmp_path / "leases")
    assert held is not None
    held.prove()
    assert Observer(storage, NAME).claim() is None and record(storage).holder == held.fence.holder
    held.release()


def test_a_heartbeat_survives_errors(storage, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    held = Observer(storage, NAME).claim()
    assert held is not None
    real, failing = Storage.put_if_unchanged, [5]

    def stutter(self, *parts, **given):
        if failing[0] > 0:
            failing[0] -= 1
            raise StorageError("503")
        return real(self, *parts, **given)

    monkeypatch.setattr(Storage, "put_if_unchanged", stutter)
    until = time.monotonic() + 20
    while failing[0] > 0 and time.monotonic() < until:
        time.sleep(0.01)
    before = record(storage).beat
    while record(storage).beat <= before and time.monotonic() < until:
        time.sleep(0.01)
    assert record(storage).beat > before and not held.lost
    held.release()


def test_who_cannot_look_does_not_judge(storage):
    """The storage did not answer, or this process was stopped: the holder may have had no chance to beat."""
    now = [100.0]
    plant(storage, beat=1)
    observer = Observer(storage, NAME, expiry=30, clock=lambda: now[0])
    assert observer.claim() is None
    now[0] += 500
    assert observer.claim() is None  # one look in 500 s
    for _ in range(3):
        now[0] += 10
        assert observer.claim() is None
    now[0] += 10
    taken = observer.claim()
    assert taken is not None
    taken.release()


def test_a_holder_elsewhere_is_alive_if_it_beats(storage, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.1)
    plant(storage, beat=1)
    assert holders(storage, [NAME], wait=0.3) == {}  # it does not: it is gone, whatever the file says
    beating = threading.Timer(0.15, plant, (storage, 2))
    beating.start()
    assert holders(storage, [NAME], wait=30)[NAME].beat == 2
    beating.join()


def test_what_nobody_holds_is_held_by_nobody(storage):
    kept = Observer(storage, NAME).claim()
    left = Observer(storage, "e" * 64).claim()
    assert kept is not None and left is not None
    left.release()
    assert set(holders(storage, [NAME, "e" * 64, "f" * 64], wait=0)) == {NAME}
    kept.release()


@pytest.mark.parametrize(
    ("error", "proc", "born"),
    [
        (None, False, "unknown"),
        (PermissionError(), False, "unknown"),
        (ProcessLookupError(), False, ""),
        (None, True, ""),  # it has just ended
    ],
)
def test_without_proc_a_process_is_there_if_it_can_be_signalled(monkeypatch, error, proc, born):
    class Nowhere:
        def __init__(self, path: str) -> None:
            pass

        def read_text(self) -> str:
            raise FileNotFoundError

        def exists(self) -> bool:
            return proc

    def kill(pid: int, number: int) -> None:
        assert number == 0
        if error is not None:
            raise error

    monkeypatch.setattr(lease, "Path", Nowhere)
    monkeypatch.setattr(os, "kill", kill)
    assert lease._born(12345) == born
