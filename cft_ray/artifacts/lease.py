"""Leases: one process at a time works on a stage, over runs, machines and crashes; and one that has lost its lease stops.

A lease is a small JSON record ``{storage}/leases/{fingerprint}.json``. Every change of it is a conditional write over the state
that was read, so of two takers one gets it, and a holder that was taken over cannot raise its ``beat`` any more. Another
process judges a record by its own monotonic clock: unchanged for `EXPIRY` seconds of looking means dead, so no two clocks are
ever compared. A holder on the same machine whose process is gone is dead at once.

*Fencing.* A process that was stopped for longer, and goes on, still believes that it holds. So before it publishes, deletes or
writes a checkpoint it *proves* it: the holder by a conditional write of its record (`Lease.prove`), the processes that work for
it by reading it (`Fence.prove`). Who cannot prove it stops.

*Attempts* are numbered by a file each, ``{storage}/attempts/{fingerprint}/{number}.json``, which only one process can make. So
a number is never used twice, also when ``leases/`` was removed.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cft_ray.storage.entry import Version
from cft_ray.storage.errors import StorageError
from cft_ray.storage.local import locked
from cft_ray.storage.retry import patience
from cft_ray.storage.root import Storage

BEAT = 2.0
"""seconds between heartbeats"""
EXPIRY = 30.0
"""seconds without a heartbeat after which an observer takes over"""
LEASES, ATTEMPTS = "leases", "attempts"
_LARGEST = 64 * 1024
"""bytes of a record"""


class LeaseLost(Exception):
    """Another process has taken the stage over: what this one makes counts no more."""

    def __init__(self, fingerprint: str) -> None:
        super().__init__(fingerprint)
        self.fingerprint = fingerprint

    def __str__(self) -> str:
        return f"another process has taken over stage {self.fingerprint[:12]}"


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

    def encode(self) -> bytes:
        """The JSON that is stored."""
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True)
class Fence:
    """What a process that works for the holder of a lease carries, to prove that the lease still stands. Picklable.

    Args:
        uri: of the storage.
        fingerprint: of the stage.
        holder: the lease's.
    """

    uri: str
    fingerprint: str
    holder: str

    def prove(self) -> None:
        """Return if the lease stands.

        Raises:
            LeaseLost: it does not.
            StorageError: that cannot be found out.
        """
        found = _read(Storage(self.uri), self.fingerprint)
        if found is None or found[0].holder != self.holder:
            raise LeaseLost(self.fingerprint)


class Lease:
    """A lease that is held. Use `Observer.claim`; the heartbeat runs in a thread until `release`."""

    def __init__(self, storage: Storage, fingerprint: str, record: Record, version: Version, abandoned: Record | None) -> None:
        self.attempt = record.attempt
        self.abandoned = abandoned
        """the record of the attempt that died holding it, if one did"""
        self.fence = Fence(storage.uri, fingerprint, record.holder)
        self.lost = False
        """whether it is known that another process has taken over"""
        self._storage, self._fingerprint, self._record, self._version = storage, fingerprint, record, version
        self._changing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{fingerprint[:8]}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        hasty = Storage(self._storage.uri, patience=BEAT)
        while not self._stop.wait(BEAT) and not self.lost:
            try:
                self._renew(hasty)
            except Exception as error:  # noqa: BLE001 - whatever it is, it may have passed by the next beat
                logging.getLogger(__name__).warning("no heartbeat for %s: %s", self._fingerprint[:12], error)

    def prove(self) -> None:
        """Return if this process holds the lease now, which a conditional write has shown.

        Raises:
            LeaseLost: it does not.
            StorageError: that cannot be found out.
        """
        if not self.lost:
            self._renew(self._storage)
        if self.lost:
            raise LeaseLost(self._fingerprint)

    def _renew(self, storage: Storage) -> None:
        """Raise the beat, or find out that the lease is lost."""
        with self._changing:
            record = replace(self._record, beat=self._record.beat + 1)
            version = storage.put_if_unchanged(*_path(self._fingerprint), data=record.encode(), version=self._version)
            if version is None:
                found = _read(storage, self._fingerprint)
                if found is None:  # the file was removed: whoever makes it anew holds the lease
                    version = storage.put_if_absent(*_path(self._fingerprint), data=record.encode())
                elif found[0].holder == self._record.holder:  # a write of ours whose answer was lost
                    record, version = found
            if version is None:
                self.lost = True
            else:
                self._record, self._version = record, version

    def release(self) -> None:
        """Give the lease back, unless it is lost. If the storage does not answer meanwhile, it will have expired."""
        self._stop.set()
        self._thread.join()
        if self.lost:
            return
        free, own = Record(attempt=self.attempt), self._storage.patience
        limit = min(EXPIRY, patience() if own is None else own)
        try:
            Storage(self._storage.uri, limit).put_if_unchanged(
                *_path(self._fingerprint), data=free.encode(), version=self._version
            )
        except StorageError as error:
            logging.getLogger(__name__).warning("the lease of %s was not given back: %s", self._fingerprint[:12], error)


class Observer:
    """Watches one stage's lease from outside, and takes it once it is free or its holder is dead.

    Args:
        storage: the storage root.
        fingerprint: of the stage.
        run: name of the run that would hold it.
        expiry: seconds without a heartbeat that mean death; None: `EXPIRY`.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        storage: Storage,
        fingerprint: str,
        run: str = "",
        expiry: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage, self._fingerprint, self._run, self._clock = storage, fingerprint, run, clock
        self._expiry = EXPIRY if expiry is None else expiry
        self._seen: tuple[str, int] | None = None
        self._changed = self._looked = clock()

    def claim(self) -> Lease | None:
        """The lease, or None while another process holds it; call again after a while."""
        found = self._storage.read_version(*_path(self._fingerprint), limit=_LARGEST)
        current = None if found is None else _decoded(found[0])
        if current is not None and current.holder and not self._dead(current):
            return None
        mine = Record(
            attempt=(current.attempt if current is not None else self._last_attempt()) + 1,
            holder=uuid.uuid4().hex,
            run=self._run,
            machine=_machine(),
            pid=os.getpid(),
            born=_born(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        version = found[1] if found is not None else None
        while True:
            version = self._put(mine, version)
            if version is None:
                return None  # another was faster
            number = (ATTEMPTS, self._fingerprint, f"{mine.attempt:06d}.json")
            if self._storage.put_if_absent(*number, data=mine.encode()) is not None:
                break
            mine = replace(mine, attempt=max(mine.attempt, self._last_attempt()) + 1)
        abandoned = current if current is not None and current.holder else None
        return Lease(self._storage, self._fingerprint, mine, version, abandoned)

    def _put(self, record: Record, version: Version | None) -> Version | None:
        if version is None:
            return self._storage.put_if_absent(*_path(self._fingerprint), data=record.encode())
        return self._storage.put_if_unchanged(*_path(self._fingerprint), data=record.encode(), version=version)

    def _last_attempt(self) -> int:
        """The highest number that an attempt has had; 0: there was none."""
        names = [entry.name.removesuffix(".json") for entry in self._storage.list(ATTEMPTS, self._fingerprint)]
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def _dead(self, record: Record) -> bool:
        if record.machine == _machine() and _born(record.pid) != record.born:
            return True
        now = self._clock()
        # While this process was stopped, or the storage did not answer, the holder may have had no chance to beat either.
        if self._seen != (record.holder, record.beat) or now - self._looked > self._expiry:
            self._seen, self._changed = (record.holder, record.beat), now
        self._looked = now
        return now - self._changed > self._expiry


def holders(storage: Storage, fingerprints: Iterable[str], wait: float | None = None) -> dict[str, Record]:
    """The records of leases that are held by living processes.

    Args:
        storage: the storage root.
        fingerprints: of the stages to look at.
        wait: seconds in which a holder on another machine must beat; None: three beats.
    """
    names = list(fingerprints)

    def look() -> dict[str, Record]:
        with ThreadPoolExecutor(max_workers=16) as pool:
            found = dict(zip(names, pool.map(lambda name: _read(storage, name), names), strict=True))
        return {name: seen[0] for name, seen in found.items() if seen is not None and seen[0].holder}

    first = look()
    alive = {name: record for name, record in first.items() if record.machine == _machine() and _born(record.pid) == record.born}
    away = {name: record for name, record in first.items() if record.machine != _machine()}
    until = time.monotonic() + (3 * BEAT if wait is None else wait)
    while away and time.monotonic() < until:
        time.sleep(BEAT / 2)
        names = list(away)
        now = look()
        beaten = {name: record for name, record in now.items() if record != away[name]}
        alive |= beaten
        away = {name: record for name, record in away.items() if name in now and name not in beaten}
    return alive


def check_locks(storage: Storage) -> None:
    """Take the lock once.

    Raises:
        UserError: the storage is a folder on a file system without locks, or cannot be written to.
    """
    if storage.local:
        with storage.writing(), locked(storage.folder(LEASES)):
            return


def release_run(storage: Storage, fingerprints: Iterable[str], run: str) -> None:
    """Give back what the processes of ``run`` held; for a driver that has stopped them."""
    for fingerprint in fingerprints:
        found = _read(storage, fingerprint)
        if found is not None and found[0].holder and found[0].run == run:
            storage.put_if_unchanged(*_path(fingerprint), data=Record(attempt=found[0].attempt).encode(), version=found[1])


def _path(fingerprint: str) -> tuple[str, str]:
    return LEASES, f"{fingerprint}.json"


def _read(storage: Storage, fingerprint: str) -> tuple[Record, Version] | None:
    found = storage.read_version(*_path(fingerprint), limit=_LARGEST)
    record = None if found is None else _decoded(found[0])
    return None if found is None or record is None else (record, found[1])


def _decoded(data: bytes) -> Record | None:
    """A record; None: this is none, and as good as absent."""
    try:
        record = Record(**json.loads(data))
    except (ValueError, TypeError):
        return None
    return record if isinstance(record.attempt, int) and isinstance(record.pid, int) else None


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
