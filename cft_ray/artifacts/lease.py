"""Leases: one process at a time works on a stage, over runs, machines and crashes.

A lease is a small JSON record ``{storage}/leases/{fingerprint}.json``. Its holder raises ``beat`` every few seconds.
Another process judges it by its own monotonic clock: unchanged for `EXPIRY` seconds means dead, so no two clocks are
ever compared. A holder on the same machine whose process is gone is dead at once. The record stays when the lease is
given back, because it carries the number of attempts.

Locally each change of a record happens under a file lock, so two processes cannot both take one lease. Object stores
offer no such lock through `pyarrow.fs`: the taker writes, waits `SETTLE` seconds and looks whether its own record
stayed. Should two still work on one stage, nothing is harmed: the first artifact published stays.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cft_ray.storage.local import locked
from cft_ray.storage.root import Storage

BEAT = 2.0
"""seconds between heartbeats"""
EXPIRY = 30.0
"""seconds without a heartbeat after which an observer takes over"""
SETTLE = 1.0
"""seconds after which a record written to an object store is looked at again"""


@dataclass(frozen=True)
class Record:
    """What a lease file holds."""

    attempt: int
    """attempts begun so far, over all processes"""
    holder: str = ""
    """unique name of the holding process; empty: free"""
    run: str = ""
    """the run that the holder belongs to, so that a driver can give back what its killed processes held"""
    machine: str = ""
    pid: int = 0
    born: str = ""
    """start time of the process, as a pid may be used again"""
    beat: int = 0
    since: str = ""
    """ISO 8601, UTC: begin of the attempt"""


class Lease:
    """A lease that is held. Use `claim`; the heartbeat runs in a thread until `release`."""

    def __init__(self, storage: Storage, fingerprint: str, record: Record, abandoned: Record | None) -> None:
        self.attempt = record.attempt
        self.abandoned = abandoned
        """the record of the attempt that died holding it, if one did"""
        self._storage, self._fingerprint, self._record = storage, fingerprint, record
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{fingerprint[:8]}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            with _locked(self._storage):
                current = _read(self._storage, self._fingerprint)
                if current is None or current.holder != self._record.holder:
                    return  # taken over; publishing is safe all the same
                self._record = replace(self._record, beat=self._record.beat + 1)
                _write(self._storage, self._fingerprint, self._record)

    def release(self) -> None:
        """Give the lease back; the count of attempts stays."""
        self._stop.set()
        self._thread.join()
        with _locked(self._storage):
            current = _read(self._storage, self._fingerprint)
            if current is not None and current.holder == self._record.holder:
                _write(self._storage, self._fingerprint, Record(attempt=current.attempt))


class Observer:
    """Watches one stage's lease from outside, and takes it once it is free or its holder is dead.

    Args:
        storage: the storage root.
        fingerprint: of the stage.
        run: name of the run that would hold it.
        expiry: seconds without a heartbeat that mean death.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        storage: Storage,
        fingerprint: str,
        run: str = "",
        expiry: float = EXPIRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage, self._fingerprint, self._run, self._expiry, self._clock = storage, fingerprint, run, expiry, clock
        self._seen: tuple[str, int] | None = None
        self._changed = clock()

    def claim(self) -> Lease | None:
        """The lease, or None while another process holds it; call again after a while."""
        mine = Record(
            attempt=1,
            holder=uuid.uuid4().hex,
            run=self._run,
            machine=_machine(),
            pid=os.getpid(),
            born=_born(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with _locked(self._storage):
            current = _read(self._storage, self._fingerprint)
            if current is not None:
                if current.holder and not self._dead(current):
                    return None
                mine = replace(mine, attempt=current.attempt + 1)
            _write(self._storage, self._fingerprint, mine)
        if not self._storage.local:
            time.sleep(SETTLE)
            standing = _read(self._storage, self._fingerprint)
            if standing is None or standing.holder != mine.holder:
                return None
        abandoned = current if current is not None and current.holder else None
        return Lease(self._storage, self._fingerprint, mine, abandoned)

    def _dead(self, record: Record) -> bool:
        if record.machine == _machine() and _born(record.pid) != record.born:
            return True
        if self._seen != (record.holder, record.beat):
            self._seen, self._changed = (record.holder, record.beat), self._clock()
        return self._clock() - self._changed > self._expiry


def holder(storage: Storage, fingerprint: str) -> Record | None:
    """The record of a lease that is held and, as far as this machine can tell, alive; else None."""
    record = _read(storage, fingerprint)
    if record is None or not record.holder:
        return None
    return None if record.machine == _machine() and _born(record.pid) != record.born else record


def check_locks(storage: Storage) -> None:
    """Take the lock once.

    Raises:
        UserError: the storage is a folder on a file system without locks, or cannot be written to.
    """
    with _locked(storage):
        return


def release_run(storage: Storage, fingerprints: Iterable[str], run: str) -> None:
    """Give back what the processes of ``run`` held; for a driver that has stopped them."""
    for fingerprint in fingerprints:
        with _locked(storage):
            record = _read(storage, fingerprint)
            if record is not None and record.holder and record.run == run:
                _write(storage, fingerprint, Record(attempt=record.attempt))


def _read(storage: Storage, fingerprint: str) -> Record | None:
    data = storage.read("leases", f"{fingerprint}.json", limit=64 * 1024)
    if data is None:
        return None
    try:
        record = Record(**json.loads(data))
    except (ValueError, TypeError):
        return None  # not ours: as good as absent
    return record if isinstance(record.attempt, int) and isinstance(record.pid, int) else None


def _write(storage: Storage, fingerprint: str, record: Record) -> None:
    storage.write("leases", f"{fingerprint}.json", data=json.dumps(asdict(record)).encode())


@contextlib.contextmanager
def _locked(storage: Storage) -> Iterator[None]:
    """Alone among the processes that see this folder; object stores have no lock (see the module's docstring)."""
    if not storage.local:
        yield
        return
    with storage.writing(), locked(storage.folder("leases")):
        yield


def _machine() -> str:
    """This machine and process namespace: where a pid means something."""
    namespace = Path("/proc/self/ns/pid")
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = [socket.gethostname()]
    parts += [boot.read_text().strip()] if boot.exists() else []
    parts += [str(namespace.readlink())] if namespace.exists() else []
    return "/".join(parts)


def _born(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "" if not _alive(pid) else "unknown"
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state == "Z" else fields[18]


def _alive(pid: int) -> bool:
    """Whether a process exists, where there is no /proc (macOS)."""
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
