"""Plans of planted stages on a real Ray: order, failure, resume, damage, tables."""

import dataclasses
import io
import json
import shutil

import pytest
import ray
from rich.console import Console
from toygraph import World, plan

import cft_ray
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import UserError
from cft_ray.execute.run import rebuild_tables, run
from cft_ray.execute.status import show, status
from cft_ray.execute.tables import send_attempt
from cft_ray.metrics.reporter import start_reporter
from cft_ray.plan.stage import Plan
from cft_ray.storage.root import Storage

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return World(tmp_path)


def go(world: World, planned: Plan):
    return run(planned, world.storage, console=Console(file=io.StringIO()))


def statuses(outcome) -> dict[str, str]:
    return {stage.label: stage.status for stage in outcome.stages.values()}


def test_a_shared_graph_runs_once_and_its_rows_are_in_the_tables(world):
    a = world.stage("a")
    b, c = world.stage("b", [a], rows=5), world.stage("c", [a], cpus=0.5)
    d = world.stage("d", [b, c])
    planned = plan(a, b, c, d)
    outcome = go(world, planned)
    assert outcome.exit_code == 0 and set(statuses(outcome).values()) == {"done"}
    assert (outcome.cells, outcome.cells_complete) == (1, 1)
    assert world.ended() == {"a": 1, "b": 1, "c": 1, "d": 1}
    manifest = ArtifactStore(Storage(world.storage)).verify("toystage", d.fingerprint)
    assert manifest.outputs["total"] == 3 + (5 + 3) + (3 + 3)
    assert world.steps(b) == [1, 2, 3, 4, 5]  # the one sent while it ran and those of the artifact, each once
    row = world.table("stages").filter(fingerprint=d.fingerprint).to_dicts()
    assert len(row) == 1 and row[0]["status"] == "done" and json.loads(row[0]["outputs"]) == manifest.outputs
    assert row[0]["cpu_seconds"] == pytest.approx(row[0]["seconds"]) and row[0]["devices"] == "1 x CPU"
    assert set(world.table("cells")["stage"]) == set(planned.stages)
    assert not (world.log.parent / "storage" / "checkpoints").exists()

    again = go(world, planned)
    assert again.exit_code == 0 and set(statuses(again).values()) == {"cached"} and again.cells_complete == 1
    e = world.stage("e", [d])
    larger = go(world, plan(a, b, c, d, e))
    assert statuses(larger) == {"a": "cached", "b": "cached", "c": "cached", "d": "cached", "e": "done"}
    assert world.began() == {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}


def test_what_the_plan_skips_is_said_and_is_neither_failure_nor_gap(world):
    a = world.stage("a")
    b = dataclasses.replace(world.stage("b", [a]), skip="b has no judge")
    said = io.StringIO()
    outcome = run(plan(a, b), world.storage, console=Console(file=said, width=200))
    assert statuses(outcome) == {"a": "done", "b": "skipped"} and outcome.exit_code == 0
    assert (outcome.cells, outcome.cells_complete) == (1, 1) and "b has no judge" in said.getvalue()
    found = status(world.storage)
    assert found.complete and found.cells_complete == 1 and {stage.skip for stage in found.stages} == {None, "b has no judge"}
    shown = Console(file=io.StringIO(), width=200)
    show(found, shown)
    assert "b has no judge" in shown.file.getvalue()  # type: ignore[attr-defined]
    assert set(world.table("cells")["skipped"]) == {None, "b has no judge"}


def test_failures_stop_their_descendants_only_and_are_told(world):
    a = world.stage("a")
    bug, user = world.stage("bug", [a], fails="bug"), world.stage("user", fails="user")
    after, good = world.stage("after", [bug, a]), world.stage("good", [a])
    never = world.stage("never", cpus=3)
    planned = plan(a, bug, user, after, good, never)
    outcome = go(world, planned)
    assert outcome.exit_code == 1
    assert statuses(outcome) == {
        "a": "done",
        "bug": "failed",
        "user": "failed",
        "after": "skipped",
        "good": "done",
        "never": "failed",
    }
    errors = {stage.label: stage.error or "" for stage in outcome.stages.values()}
    assert "ZeroDivisionError" in errors["bug"] and "planted" in errors["bug"]
    assert errors["user"].startswith("x.jsonl: the file has no rows") and "Traceback" not in errors["user"]
    assert "bug" in errors["after"] and "3 CPU" in errors["never"]
    assert (outcome.cells, outcome.cells_complete) == (4, 1)

    found = status(world.storage)
    states = {stage.label: (stage.state, stage.attempts) for stage in found.stages}
    assert states["bug"] == ("failed", 1) and states["after"] == ("skipped", 0) and states["good"] == ("done", 1)
    assert found.cells_complete == 1
    console = Console(file=io.StringIO(), width=200)
    show(found, console)
    assert "ZeroDivisionError" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]

    mended = world.stage("bug", [a])
    assert mended.fingerprint == bug.fingerprint
    outcome = go(world, plan(a, mended, after, good))
    assert outcome.exit_code == 0 and statuses(outcome)["bug"] == statuses(outcome)["after"] == "done"
    assert world.attempts(mended) == ["failed", "done"] and world.ended()["good"] == 1


def test_a_stage_whose_process_dies_is_tried_again(world):
    died = world.stage("died", fails="dies once")
    outcome = go(world, plan(died, world.stage("after", [died])))
    assert outcome.exit_code == 0
    assert world.began()["died"] == 2 and world.ended() == {"died": 1, "after": 1}
    assert world.attempts(died) == ["failed", "done"] and world.steps(died) == [1, 2, 3]


def test_damaged_artifacts_are_made_again_and_nothing_else(world):
    a = world.stage("a")
    b, c = world.stage("b", [a]), world.stage("c", [a])
    planned = plan(a, b, c)
    go(world, planned)
    folder = ArtifactStore(Storage(world.storage)).fetch("toystage", a.fingerprint)
    (folder / "data.txt").write_text("zzz")  # the same size
    outcome = go(world, planned)
    assert statuses(outcome) == {"a": "done", "b": "cached", "c": "cached"} and world.ended() == {"a": 2, "b": 1, "c": 1}
    again = ArtifactStore(Storage(world.storage)).fetch("toystage", a.fingerprint)
    assert (again / "data.txt").read_text() == "aaa" and not folder.exists()


def test_tables_come_back_from_the_artifacts(world):
    a = world.stage("a")
    b = world.stage("b", [a])
    go(world, plan(a, b))
    before = world.table("steps").sort("fingerprint", "attempt", "sequence")
    shutil.rmtree(f"{world.storage}/tables")
    ray.kill(start_reporter(world.storage)._actor, no_restart=False)  # it knows what it wrote; a later process would not
    assert rebuild_tables(world.storage, "toy") == 2
    assert world.table("steps").sort("fingerprint", "attempt", "sequence").equals(before)
    assert world.attempts(a) == world.attempts(b) == ["done"]
    assert rebuild_tables(world.storage, "toy") == 0


def test_rebuilding_goes_on_past_an_artifact_that_is_not_ours(world):
    a, foreign = world.stage("a"), world.stage("foreign")
    go(world, plan(a, foreign))
    folder = ArtifactStore(Storage(world.storage)).fetch("toystage", foreign.fingerprint)
    file_of_manifest = folder.parent / "manifest.json"
    manifest = json.loads(file_of_manifest.read_text())
    manifest["files"] = [
        {**file, "path": file["path"].replace("tables/steps", "tables/moons")} for file in manifest["files"]
    ]  # a table of another version of the package
    manifest["rows"] = {"moons": manifest["rows"]["steps"]}
    (folder / "tables" / "steps.parquet").rename(folder / "tables" / "moons.parquet")
    file_of_manifest.write_text(json.dumps(manifest))
    shutil.rmtree(f"{world.storage}/tables")
    ray.kill(start_reporter(world.storage)._actor, no_restart=False)
    said = io.StringIO()
    assert rebuild_tables(world.storage, "toy", console=Console(file=said, width=200)) == 1
    assert world.steps(a) == [1, 2, 3] and world.attempts(a) == ["done"]
    assert foreign.fingerprint[:12] in said.getvalue() and a.fingerprint[:12] not in said.getvalue()


def test_an_artifact_that_stands_is_done_whatever_was_recorded_of_its_process(world):
    """The process died between publishing and the word of it, and somebody recorded its death first."""
    a = world.stage("a")
    go(world, plan(a))
    shutil.rmtree(f"{world.storage}/tables")
    reporter = start_reporter(world.storage)
    ray.kill(reporter._actor, no_restart=False)
    send_attempt(reporter, a.fingerprint, 1, {"kind": "toystage", "status": "failed", "error": "its process ended"})
    assert world.attempts(a) == ["failed"]
    go(world, plan(a))
    stages = cft_ray.open(world.storage).stages().collect()
    assert stages["status"].to_list() == ["done"] and stages["error"].to_list() == [None]
    assert world.steps(a) == [1, 2, 3]


def test_unwritable_storage_is_refused_before_anything_runs(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(plan(world.stage("a")), str(tmp_path / "file" / "below"))
    assert not world.began()


def test_status_of_what_was_never_run(world):
    with pytest.raises(UserError, match="no grid was run"):
        status(world.storage)
