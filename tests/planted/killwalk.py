"""A run's life in one process, killed at each thing that it does to the storage, and then run again.

    python killwalk.py STORAGE_ROOT FOLDER

A process that has imported everything forks a child for each life, so a life costs a fraction of a second. The child counts
what is done through the one door of storage and, below it, to this machine's file system, and dies of SIGKILL before or
after the point that it was given; a second child then runs the same plan as if nothing had been. Printed is, as JSON, for
each point what it was and in what the outcome differs from that of an undisturbed run.
"""

import io
import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from inprocess import Direct, Told
from rich.console import Console
from toygraph import World, plan

from cft_ray.artifacts import lease
from cft_ray.artifacts.lease import check_locks, holders, release_run
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.execute.attempt import run_stage
from cft_ray.execute.leavings import clear_left
from cft_ray.execute.record import save_plan
from cft_ray.execute.run import verify_cached
from cft_ray.execute.tables import send_cells, send_missing
from cft_ray.execute.work import Work
from cft_ray.metrics.reading import Results
from cft_ray.plan.stage import Plan
from cft_ray.storage.root import Storage

LANES = 3
"""points looked at at a time; a life waits for its storage for most of its time"""
DOOR = ("write", "put_if_absent", "put_if_unchanged", "delete", "upload")
BELOW: tuple[tuple[Any, str], ...] = ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "link"), (shutil, "rmtree"))
os.fsync = lambda handle: None  # the death of a process loses nothing that was written
lease.BEAT = 3600.0  # no heartbeat comes between: the same life does the same things in the same order


def planned(folder: Path, storage: str) -> Plan:
    world = World(folder, storage)
    return plan(world.stage("one", checkpoints=1))


def live(folder: Path, uri: str, run: str) -> None:
    """What `cft_ray.execute.run.run` does, without Ray: the driver, the stages and the reporter in this process."""
    todo, storage = planned(folder, uri), Storage(uri, patience=5)
    store, reporter = ArtifactStore(storage), Direct(storage)
    storage.check_writable()
    check_locks(storage)
    save_plan(storage, todo)
    cached = verify_cached(todo, store, Console(file=io.StringIO()))
    clear_left(store, cached)
    send_cells(reporter, todo)  # type: ignore[arg-type]
    send_missing(reporter, store, cached, todo.grid)  # type: ignore[arg-type]
    there = {made.fingerprint for made in cached}
    for key, stage in todo.stages.items():
        if key not in there:
            work = Work(stage, dict.fromkeys(stage.inputs.values(), stage.kind), storage.uri, todo.grid, run)
            ended = run_stage(work.encode(), reporter, Told())  # type: ignore[arg-type]
            assert ended == {"status": "done"}, ended
    made = [store.require(stage.kind, key) for key, stage in todo.stages.items()]
    send_missing(reporter, store, made, todo.grid)  # type: ignore[arg-type]
    reporter.finish()
    release_run(storage, todo.stages, run)


def outcome(folder: Path, uri: str) -> dict[str, Any]:
    """What a run has left, without what differs from run to run: times, names drawn by lot, numbers of attempts."""
    todo, storage = planned(folder, uri), Storage(uri, patience=5)
    store, results = ArtifactStore(storage), Results(storage)
    found: dict[str, Any] = {}
    for key, stage in todo.stages.items():
        made = store.verify(stage.kind, key)
        files = {file.path: file.sha256 for file in made.files}
        beside = seen(storage, "artifacts", stage.kind, key)
        attempts = results.stages().collect().filter(fingerprint=key).select("attempt", "status").rows()
        numbers = [int(name.removesuffix(".json")) for name in seen(storage, "attempts", key)]
        record = json.loads(storage.read("leases", f"{key}.json") or b"{}")
        assert record["attempt"] == max(numbers), (record, numbers)
        assert dict(attempts)[made.attempt] == "done" and made.attempt <= max(numbers), (attempts, made.attempt)
        found[stage.label] = {
            "files": files,
            "total": made.outputs["total"],
            "besides": [name for name in beside if name not in ("manifest.json", made.folder)],
            "statuses": sorted(status for attempt, status in attempts if attempt != made.attempt and status != "failed"),
            "held": bool(holders(storage, [key])),
            "checkpoints": seen(storage, "checkpoints", key),
            "steps": results.steps().collect().filter(fingerprint=key).select("step", "loss").rows(),
        }
    cells = results.cells().drop("attempt").collect()
    found["cells"] = sha256(cells.write_json().encode()).hexdigest()
    found["kept for later"] = sorted(
        path.name for path in (folder / "cache" / name for name in ("finished", "staging")) for path in path.rglob("*.*")
    )
    found["work begun"] = {name: min(count, 2) for name, count in World(folder, uri).began().items()}
    return found


def seen(storage: Storage, *parts: str) -> list[str]:
    """What lies in a folder; not the hidden half of a file that a killed process leaves, which nothing reads."""
    return [entry.name for entry in storage.list(*parts) if not entry.name.startswith(".")]


class Points:
    """Counts what is done, and ends this process at one of it.

    Args:
        last: number of the point, from 0; None: none.
        after: whether the point is still done.
    """

    def __init__(self, last: int | None, after: bool) -> None:
        self.last, self.after, self.names, self._depth = last, after, [], 0
        for name in DOOR:
            setattr(Storage, name, self._counted(getattr(Storage, name), f"storage.{name}"))
        for owner, name in BELOW:
            setattr(owner, name, self._counted(getattr(owner, name), name))

    def _counted(self, do: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            number = len(self.names)
            self.names.append(" ".join([name, *(str(argument) for argument in arguments if isinstance(argument, str))]))
            if number == self.last and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = do(*arguments, **named)
            if number == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return counted


def begun(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin some work in a child. Whoever calls the answer gets what it returned, as JSON can hold it; None: it was killed."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        try:
            said = {"answer": work()}
        except BaseException:  # noqa: BLE001 - whatever it was, the parent says it
            said = {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as sink:
            json.dump(said, sink)
        os._exit(0)
    os.close(writing)

    def ended() -> Any:
        with os.fdopen(reading) as source:
            text = source.read()
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            return None
        said = json.loads(text)
        if "error" in said:
            raise RuntimeError(said["error"])
        return said["answer"]

    return ended


def one(folder: Path, uri: str, last: int | None, after: bool) -> tuple[list[str] | None, dict[str, Any]]:
    """Live with an end at a point, live again, and look. Returns the points of the first life, None where it was killed."""
    folder.mkdir()
    os.environ["CFT_RAY_CACHE"] = str(folder / "cache")

    def first() -> list[str]:
        points = Points(last, after)
        live(folder, uri, "first")
        return points.names

    def second() -> dict[str, Any]:
        if last is not None:
            live(folder, uri, "second")
        return outcome(folder, uri)

    return begun(first)(), begun(second)()


def walk(root: str, folder: Path) -> list[dict[str, Any]]:
    names, undisturbed = one(folder / "undisturbed", f"{root}/undisturbed", None, False)
    assert names is not None
    # After what was done to this machine's files comes, before anything else is done, what is the next point.
    points = [(number, after) for number, after in itertools.product(range(len(names)), (False, True))]
    points = [(number, after) for number, after in points if not after or names[number].startswith("storage.")]

    def some(first: int) -> list[dict[str, Any]]:
        return [look(number, after) for number, after in points[first::LANES]]

    def look(number: int, after: bool) -> dict[str, Any]:
        point = f"{number}-{'after' if after else 'before'}"
        lived, left = one(folder / point, f"{root}/{point}", number, after)
        again = left.pop("work begun")
        different = {key: value for key, value in left.items() if value != undisturbed[key]}
        shutil.rmtree(folder / point)
        return {"point": f"{point} {names[number]}", "killed": lived is None, "different": different, "begun": again}

    lanes = [begun(lambda first=first: some(first)) for first in range(LANES)]
    found = [point for lane in lanes for point in lane()]
    return sorted(found, key=lambda point: int(point["point"].partition("-")[0]))


if __name__ == "__main__":
    print(json.dumps(walk(sys.argv[1], Path(sys.argv[2]))))
