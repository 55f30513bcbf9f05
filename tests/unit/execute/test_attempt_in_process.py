"""One stage from claim to artifact in this process, and what the searcher makes of a trial's end. No Ray is started."""

import json
import os
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from inprocess import Direct, Told
from ray.air.constants import EXPR_ERROR_PICKLE_FILE
from ray.exceptions import RayTaskError, WorkerCrashedError
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from toystage import ToySpec

from cft_ray.artifacts.lease import Observer
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import StageFailed, UserError
from cft_ray.execute import attempt, searcher
from cft_ray.execute.attempt import cause, describe, is_death, run_stage
from cft_ray.execute.capacity import Capacity, Nodes
from cft_ray.execute.hosts import Hosts
from cft_ray.execute.schedule import Schedule, State
from cft_ray.execute.searcher import StageSearcher
from cft_ray.execute.work import Work
from cft_ray.grid.settings import GenerationSettings
from cft_ray.metrics.store import read_files
from cft_ray.plan.specs import EvaluateSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.storage.errors import StorageError, Unavailable
from cft_ray.storage.root import Storage


@pytest.fixture
def storage(tmp_path, monkeypatch) -> Storage:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return Storage(tmp_path / "storage")


def stage(folder: Path, name: str = "a", *inputs: Stage, cpus: float = 2.0, **settings: Any) -> Stage:
    spec = ToySpec(name=name, log=str(folder / "log"), **settings)
    roles = {f"role{n}": source.fingerprint for n, source in enumerate(inputs)}
    return Stage(spec, roles, label=f"label {name}", resources=Resources(workers=3, cpus=cpus))


def run(storage: Storage, made: Stage, board: Any = None, broken: bool = False) -> dict[str, Any]:
    kinds = dict.fromkeys(made.inputs.values(), "toystage")
    work = Work(made, kinds, storage.uri, "study", "run").encode()
    return run_stage(work, Direct(storage, broken), board or Told())  # type: ignore[arg-type]


def rows(storage: Storage, table: str, *columns: str) -> list[tuple[Any, ...]]:
    read = [found for _, found in read_files(storage, table, ["attempt", "sequence", *columns])]
    return sorted(tuple(row.values()) for row in pa.concat_tables(read).to_pylist()) if read else []


def test_a_stage_becomes_an_artifact_its_rows_and_an_attempt(storage, tmp_path):
    first = stage(tmp_path)
    made = stage(tmp_path, "b", first, rows=4)
    storage.write("checkpoints", made.fingerprint, "half", data=b"x")
    assert run(storage, first) == run(storage, made) == {"status": "done"}
    manifest = ArtifactStore(storage).require("toystage", made.fingerprint)
    assert (manifest.outputs["total"], manifest.rows, manifest.attempt) == (7, {"steps": 4}, 1)
    assert "torch" in manifest.versions and manifest.versions["cpu"] in {"AVX512", "AVX2", "DEFAULT"}
    columns = ("status", "kind", "label", "grid", "devices", "gpu_seconds", "error")
    assert rows(storage, "stages", *columns) == [
        (1, 2, "done", "toystage", f"label {name}", "study", "6 x CPU", 0.0, None) for name in ("a", "b")
    ]
    for _, _, seconds, held, start, end in rows(storage, "stages", "seconds", "cpu_seconds", "start", "end"):
        assert 0 < seconds < 60 and held == pytest.approx(6 * seconds)
        assert abs((end - start).total_seconds() - seconds) < 1 and abs((datetime.now(UTC) - end).total_seconds()) < 60
    # The one that the stage sent while it ran, and those of its files: the same numbers are the same rows.
    assert [step for _, _, step in rows(storage, "steps", "step")] == [1, 1, 2, 2, 3, 3, 4]
    assert not list(storage.list("checkpoints", made.fingerprint))
    assert not list((tmp_path / "cache").rglob(made.fingerprint))
    assert Observer(storage, made.fingerprint).claim() is not None


def test_what_is_there_is_not_made_again(storage, tmp_path):
    made = stage(tmp_path)
    assert [run(storage, made), run(storage, made)] == [{"status": "done"}] * 2
    assert (tmp_path / "log").read_text().count("begin") == 1


def test_a_failure_is_a_result_and_leaves_no_folder(storage, tmp_path):
    made = stage(tmp_path, fails="user")
    assert run(storage, made) == {"status": "failed", "error": "x.jsonl: the file has no rows\n  fix: give it some"}
    bug = run(storage, stage(tmp_path, "b", fails="bug"))
    assert bug["status"] == "failed" and bug["error"].startswith("ZeroDivisionError: planted\nTraceback")
    statuses = rows(storage, "stages", "status", "error")
    assert [row[:3] for row in statuses] == [(1, 1, "failed")] * 2
    assert {row[3] for row in statuses} == {"x.jsonl: the file has no rows\n  fix: give it some", bug["error"]}
    assert not list(ArtifactStore(storage).manifests()) and not list((tmp_path / "storage").rglob("data.txt"))
    assert run(storage, made)["status"] == "failed"
    assert sorted(row[0] for row in rows(storage, "stages", "status")) == [1, 1, 2]


def test_an_error_of_recording_is_as_much_a_result(storage, tmp_path):
    """Of the frame around the stage's work: it is shown as it is, not as a process that ended."""
    made = stage(tmp_path)
    found = run(storage, made, broken=True)
    assert found["status"] == "failed" and "the storage is full" in found["error"]
    assert Observer(storage, made.fingerprint).claim() is not None  # the lease was given back


def test_a_damaged_input_is_lost_and_removed(storage, tmp_path):
    first = stage(tmp_path)
    made = stage(tmp_path, "b", first)
    run(storage, first)
    folder = ArtifactStore(storage).fetch("toystage", first.fingerprint)
    (folder / "data.txt").write_text("no longer what it was, nor as long")
    assert run(storage, made) == {"status": "lost input", "lost": first.fingerprint}
    assert not ArtifactStore(storage).exists("toystage", first.fingerprint)
    assert run(storage, first)["status"] == "done" and run(storage, made)["status"] == "done"


def test_a_stage_waits_for_another_run_and_takes_its_artifact(storage, tmp_path, monkeypatch):
    made = stage(tmp_path)
    other = Observer(storage, made.fingerprint, "other").claim()
    assert other is not None
    waited: list[float] = []

    def meanwhile(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            folder = ArtifactStore(storage).stage_folder(made.kind, made.fingerprint, 1)
            (folder / "data.txt").write_text("theirs")
            ArtifactStore(storage).publish(
                ArtifactStore(storage).finished(made, folder, outputs={"total": 1}, attempt=1, seconds=2.0, versions={})
            )

    monkeypatch.setattr(attempt.time, "sleep", meanwhile)
    board = Told()
    assert run(storage, made, board) == {"status": "done"}
    other.release()
    assert board.values == [{"note": "another run works on it"}] * 3 and waited == [attempt.POLL] * 3
    assert not (tmp_path / "log").exists()
    assert rows(storage, "stages", "status", "seconds") == [(1, 2, "done", 2.0)]


def test_an_attempt_that_died_is_recorded_and_followed_by_another(storage, tmp_path):
    made = stage(tmp_path)
    pid = os.fork()
    if pid == 0:  # claims, and ends without a word
        Observer(storage, made.fingerprint, "other").claim()
        os._exit(0)
    os.waitpid(pid, 0)
    assert run(storage, made) == {"status": "done"}
    (died, done) = rows(storage, "stages", "status", "error", "node", "kind", "grid")
    assert died[:3] == (1, 1, "failed") and died[3].startswith("its process ended without a result")
    assert died[5:] == ("toystage", "study") and done[:3] == (2, 2, "done") and died[4] == done[4]
    assert ArtifactStore(storage).require("toystage", made.fingerprint).attempt == 2


def test_what_a_task_raised_is_found_below_rays_wrapping():
    inner = UserError("bad", where="x")
    once = RayTaskError("f", "trace", inner)
    twice = RayTaskError("g", "trace", once)
    assert cause(twice) is cause(once) is cause(inner) is inner
    assert [is_death(each) for each in (inner, once, WorkerCrashedError(), OSError())] == [False, False, True, False]
    assert describe(StageFailed("no rows")) == "no rows"
    assert describe(ValueError("x")) == "ValueError: x"  # never raised: no traceback
    try:
        raise ValueError("y" * 20_000)
    except ValueError as error:
        assert len(describe(error)) == len("ValueError: ") + 20_000 + 1 + 8_000


def test_a_death_below_a_stage_is_recorded_and_goes_up(storage, tmp_path, monkeypatch):
    """Tune tries it again then; what is raised in a task comes again in the same way, and is a result."""
    made = stage(tmp_path)

    def dies(error: Exception) -> Any:
        def work(_: Any) -> Any:
            raise error

        return lambda kind: work

    monkeypatch.setattr(attempt, "runner", dies(WorkerCrashedError()))
    with pytest.raises(WorkerCrashedError):
        run(storage, made)
    assert [row[:3] for row in rows(storage, "stages", "status")] == [(1, 1, "failed")]
    monkeypatch.setattr(attempt, "runner", dies(RayTaskError("f", "trace", ValueError("of the task"))))
    found = run(storage, made)
    assert found["status"] == "failed" and found["error"].startswith("ValueError: of the task")
    monkeypatch.undo()
    assert run(storage, made) == {"status": "done"}
    assert Observer(storage, made.fingerprint).claim() is not None


# The searcher


def trial(folder: Path, name: str, error: Exception | None = None) -> Trial:
    """A trial of Tune's own, with the error that it keeps on disk."""
    context = StorageContext(storage_path=str(folder), experiment_dir_name="experiment", trial_dir_name=name)
    made: Any = Trial("trainable", trial_id=name, stub=True, storage=context)
    if error is not None:
        # As `Trial.handle_error` does, which wants a running Ray for its own folder.
        made.run_metadata.pickled_error_filename = EXPR_ERROR_PICKLE_FILE
        place = Path(context.trial_fs_path)
        place.mkdir(parents=True)
        (place / EXPR_ERROR_PICKLE_FILE).write_bytes(pickle.dumps(error))
    return made


class World:
    """A searcher over a chain of stages, and what it told."""

    def __init__(self, folder: Path, count: int = 2, stopping: bool = False) -> None:
        self.chain: list[Stage] = []
        for number in range(count):
            self.chain.append(stage(folder, f"s{number}", *self.chain[-1:], cpus=0.1))
        self.schedule = Schedule({each.fingerprint: each for each in self.chain}, set(), Capacity((Nodes(cpus=9),)))
        self.changed: list[str] = []
        self.searcher = StageSearcher(self.schedule, self._work, Hosts("run"), self.changed.append, lambda: stopping)

    def _work(self, fingerprint: str, host: str | None) -> Work:
        return Work(self.schedule.stages[fingerprint], {}, "/storage", "study", "run", host=host)

    def state(self, number: int) -> State:
        return self.schedule.states[self.chain[number].fingerprint]


@pytest.fixture
def quiet(monkeypatch) -> None:
    monkeypatch.setattr(searcher, "QUIET_SECONDS", 0.0)


def test_stages_follow_their_inputs_and_the_end_is_said(tmp_path, quiet):
    world = World(tmp_path)
    told = world.searcher.suggest("one")
    assert isinstance(told, dict) and Work.decode(told["work"]).stage == world.chain[0]
    assert world.searcher.suggest("two") is None and world.state(0) == State.RUNNING
    world.searcher.on_trial_complete("one", {"status": "done"})
    assert world.state(0) == State.DONE
    assert isinstance(world.searcher.suggest("two"), dict)
    world.searcher.on_trial_complete("two", {"status": "failed", "error": "no rows"})
    assert world.state(1) == State.FAILED and world.schedule.errors[world.chain[1].fingerprint] == "no rows"
    assert world.searcher.suggest("three") == Searcher.FINISHED
    keys = [each.fingerprint for each in world.chain]
    assert world.changed == [keys[0], keys[0], keys[1], keys[1]]


def test_a_lost_input_goes_back_with_its_user(tmp_path, quiet):
    world = World(tmp_path)
    world.searcher.suggest("one")
    world.searcher.on_trial_complete("one", {"status": "done"})
    world.searcher.suggest("two")
    world.searcher.on_trial_complete("two", {"status": "lost input", "lost": world.chain[0].fingerprint})
    assert (world.state(0), world.state(1)) == (State.READY, State.WAITING)
    assert world.changed[-2:] == [world.chain[0].fingerprint, world.chain[1].fingerprint]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "its process ended without a result, on every attempt (killed, out of memory?)"),
        (
            WorkerCrashedError(),
            "its process ended without a result, on every attempt (killed, out of memory?). WorkerCrashedError: ",
        ),
        (UserError("the storage is full", where="s3://b", fix="free space"), "s3://b: the storage is full\n  fix: free space"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_the_reason_that_tune_keeps_is_the_one_that_is_shown(tmp_path, quiet, error, said):
    world = World(tmp_path)
    world.searcher.suggest("one")
    world.searcher.started(trial(tmp_path, "one", error))
    world.searcher.on_trial_complete("one", error=True)
    shown = world.schedule.errors[world.chain[0].fingerprint]
    assert shown.startswith(said) and (world.state(0), world.state(1)) == (State.FAILED, State.SKIPPED)
    assert "\n" not in shown.removeprefix(said) or not isinstance(error, WorkerCrashedError)


@pytest.mark.parametrize("result", [None, {}, {"loss": 1.0}])
def test_a_trial_without_a_result_has_failed_unless_the_run_is_stopped(tmp_path, quiet, result):
    for stopping, state in ((False, State.FAILED), (True, State.RUNNING)):
        world = World(tmp_path, stopping=stopping)
        world.searcher.suggest("one")
        world.searcher.on_trial_complete("one", result)
        assert world.state(0) == state and len(world.changed) == (1 if stopping else 2)


def test_a_stage_waits_for_an_actor_that_may_come_free(tmp_path, monkeypatch):
    """After an end nothing new is started for a while, unless its actor is kept for the next."""
    now = [100.0]
    monkeypatch.setattr(searcher.time, "monotonic", lambda: now[0])
    world = World(tmp_path, count=1)
    other = [stage(tmp_path, f"other{n}", cpus=0.1) for n in range(3)]
    world.schedule = Schedule({each.fingerprint: each for each in other}, set(), Capacity((Nodes(cpus=9),)))
    made = StageSearcher(world.schedule, world._work, Hosts("run"), world.changed.append, lambda: False)
    assert isinstance(made.suggest("one"), dict)
    assert made.suggest("two") is None  # the first has no actor yet
    now[0] += searcher.QUIET_SECONDS
    assert isinstance(made.suggest("two"), dict)
    for name in ("one", "two"):
        made.started(trial(tmp_path, name))
    made.on_trial_complete("one", {"status": "done"})
    assert isinstance(made.suggest("three"), dict)  # in the actor of the first
    assert made.suggest("another") is None  # which is no longer kept
    made.on_trial_complete("two", error=True)
    assert made.suggest("four") is None
    json.dumps(made.suggest("five"))


class Named(Hosts):
    """Hosts whose actors are only named."""

    def named(self, host: str, needs: Resources) -> str | None:
        return f"actor of {host}" if needs.gpus else None


def test_a_stage_is_told_the_actor_that_keeps_its_model(tmp_path, quiet):
    model = stage(tmp_path)
    asks = [
        Stage(
            EvaluateSpec(benchmark=name, ability="TA", tasks={"en": "t"}, metric="acc", generation=GenerationSettings()),
            {"model": model.fingerprint},
            resources=Resources(cpus=1, gpus=1),
        )
        for name in ("x", "y")
    ]
    graph = {each.fingerprint: each for each in (model, *asks)}
    plan = Schedule(graph, {model.fingerprint}, Capacity((Nodes(cpus=4, gpus=1),)))
    told: list[str | None] = []

    def work(fingerprint: str, host: str | None) -> Work:
        told.append(host)
        return Work(graph[fingerprint], {}, "/storage", "study", "run", host=host)

    made = StageSearcher(plan, work, Named("run"), lambda _: None, lambda: False)
    assert isinstance(made.suggest("one"), dict)
    made.on_trial_complete("one", {"status": "done"})
    assert isinstance(made.suggest("two"), dict)
    assert told[0] is not None and told[0] == told[1]
    alone = World(tmp_path)
    told.clear()
    alone.searcher._work = work  # type: ignore[assignment]
    graph |= {each.fingerprint: each for each in alone.chain}
    assert isinstance(alone.searcher.suggest("three"), dict) and told == [None]


def dead_holder(storage: Storage, made: Stage) -> None:
    """A lease whose process has ended."""
    pid = os.fork()
    if pid == 0:
        Observer(storage, made.fingerprint, "run").claim()
        os._exit(0)
    os.waitpid(pid, 0)


def told(storage: Storage, made: Stage) -> Work:
    return Work(made, {}, storage.uri, "study", "run")


def test_an_attempt_that_was_killed_is_recorded_with_its_reason_and_gives_its_lease_back(storage, tmp_path):
    made = stage(tmp_path)
    dead_holder(storage, made)
    attempt.record_stop(told(storage, made), Direct(storage), "took too long")  # type: ignore[arg-type]
    assert rows(storage, "stages", "status", "error", "label") == [(1, 1, "failed", "took too long", "label a")]
    held = Observer(storage, made.fingerprint).claim()
    assert held is not None and held.attempt == 3 and held.abandoned is None
    held.release()
    attempt.record_stop(told(storage, made), Direct(storage), "again")  # type: ignore[arg-type]
    assert len(rows(storage, "stages", "status")) == 1, "nobody died"


def test_the_end_of_an_attempt_that_another_holds_is_waited_for_twice_an_expiry(storage, tmp_path, monkeypatch):
    made, now, waited = stage(tmp_path), [100.0], []
    other = Observer(storage, made.fingerprint, "other").claim()
    assert other is not None

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(attempt, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    attempt.record_stop(told(storage, made), Direct(storage), "killed")  # type: ignore[arg-type]
    assert waited == [attempt.POLL] * 120 and not rows(storage, "stages", "status")
    other.release()


@pytest.mark.parametrize("error", [StorageError("away"), WorkerCrashedError()])
def test_an_end_that_cannot_be_recorded_is_left_to_the_next_attempt(storage, tmp_path, monkeypatch, error):
    made = stage(tmp_path)
    dead_holder(storage, made)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(attempt, "send_attempt", fail)
        attempt.record_stop(told(storage, made), Direct(storage), "killed")  # type: ignore[arg-type]
    held = Observer(storage, made.fingerprint).claim()
    assert held is not None, "the lease is free all the same"
    held.release()


def test_why_there_is_no_result():
    assert attempt.lost(RayTaskError("f", "trace", UserError("bad", where="x"))) == "x: bad"
    said = attempt.lost(WorkerCrashedError())
    assert said.startswith("its process ended without a result, on every attempt (killed, out of memory?). WorkerCrashedError: ")
    assert "\n" not in said


@pytest.mark.parametrize(("gpus", "devices", "held"), [(0.0, "6 x CPU", 0.0), (0.5, "1.5 x H100 or L4", 15.0)])
def test_what_an_attempt_has_held(tmp_path, monkeypatch, gpus, devices, held):
    attempt._gpu_name.cache_clear()
    resources = {"CPU": 4.0, "accelerator_type:L4": 1.0, "accelerator_type:H100": 1.0}
    monkeypatch.setattr(attempt.ray, "cluster_resources", lambda: resources)
    made = replace(stage(tmp_path), resources=Resources(workers=3, cpus=2.0, gpus=gpus))
    row = attempt._row(Work(made, {}, "/s", "study", "run"), datetime.now(UTC), 10.0)
    assert (row["devices"], row["gpu_seconds"], row["cpu_seconds"], row["seconds"]) == (devices, held, 60.0, 10.0)
    attempt._gpu_name.cache_clear()
    resources.clear()
    assert attempt._gpu_name() == "GPU"
    attempt._gpu_name.cache_clear()


def test_a_stage_with_gpus_does_not_beat_before_its_work_does(storage, tmp_path, monkeypatch):
    """They may still have to be started."""
    monkeypatch.setattr(attempt, "_gpu_name", lambda: "GPU")

    class Beats(Told):
        def __init__(self) -> None:
            super().__init__()
            self.beats = 0

        def tell(self, fingerprint: str, values: dict[str, Any], *, beat: bool = False) -> None:
            self.beats += beat

    counts = []
    for name, gpus in (("a", 0.0), ("b", 1.0)):
        made, board = replace(stage(tmp_path, name), resources=Resources(gpus=gpus)), Beats()
        work = Work(made, {}, storage.uri, "study", "run").encode()
        run_stage(work, Direct(storage), board)  # type: ignore[arg-type]
        counts.append(board.beats)
    assert counts[0] == counts[1] + 1


@pytest.mark.parametrize(
    ("error", "proofs"), [(Unavailable("away", where="s3://b"), 0), (UserError("bad"), 1), (ValueError("bug"), 1)]
)
def test_of_a_storage_that_is_away_nothing_more_is_asked(storage, tmp_path, monkeypatch, error, proofs):
    """Whether the lease still stands could not be found out either; it would be waited for as long again."""
    asked: list[int] = []

    def work(_: Any) -> Any:
        raise error

    monkeypatch.setattr(attempt, "runner", lambda kind: work)
    monkeypatch.setattr(attempt.Lease, "prove", lambda self: asked.append(1))
    assert run(storage, stage(tmp_path))["status"] == "failed" and len(asked) == proofs
