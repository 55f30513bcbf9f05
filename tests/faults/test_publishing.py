"""A bucket that takes no files for a while: what a stage's work has made is kept, and published by the next attempt."""

from pathlib import Path

import pytest
from inprocess import Direct, Told
from s3double import Refuse
from toygraph import World

import cft_ray
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.execute.attempt import run_stage
from cft_ray.execute.work import Work
from cft_ray.plan.stage import Stage
from cft_ray.storage.root import Storage


@pytest.fixture
def world(tmp_path, monkeypatch, s3) -> World:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CFT_RAY_STORAGE_PATIENCE", "0.1")
    return World(tmp_path, f"s3://{s3.bucket()}/run")


def run(world: World, made: Stage) -> dict[str, str]:
    storage = Storage(world.storage)
    work = Work(made, dict.fromkeys(made.inputs.values(), made.kind), storage.uri, "study", "run")
    return run_stage(work.encode(), Direct(storage), Told())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["data.txt", "manifest.json"])
def test_work_is_done_once_although_its_result_cannot_be_published(world, s3, tmp_path, name):
    made = world.stage("one", checkpoints=1)
    with s3.behaving(lambda asked: Refuse() if asked.method in ("PUT", "POST") and asked.path.endswith(name) else None):
        found = run(world, made)
    assert found["status"] == "failed" and "SlowDown" in found["error"] and "the same command publishes it" in found["error"]
    store = ArtifactStore(Storage(world.storage))
    assert not store.exists(made.kind, made.fingerprint) and store.storage.list("checkpoints", made.fingerprint)
    assert run(world, made) == {"status": "done"}
    assert world.began() == world.ended() == {"one": 1}
    standing = store.verify(made.kind, made.fingerprint)
    assert (store.fetch(made.kind, made.fingerprint) / "data.txt").read_text() == "oneoneone"
    attempts = cft_ray.open(world.storage).stages().select("attempt", "status").collect().rows()
    assert attempts == [(1, "failed"), (2, "done")] and standing.attempt == 2
    assert world.steps(made) == [1, 2, 3]
    left = [entry.name for entry in store.storage.list("artifacts", made.kind, made.fingerprint)]
    assert left == sorted([standing.folder, "manifest.json"])
    assert not store.storage.list("checkpoints", made.fingerprint)
    cache = Path(tmp_path, "cache")
    assert not list((cache / "staging").rglob("data.txt")) and not list((cache / "finished").rglob("*.json"))


def test_another_run_that_was_faster_stands(world, s3, tmp_path, monkeypatch):
    """The result that was kept is worth nothing then, and goes when the stage is met again."""
    made = world.stage("one")
    with s3.behaving(lambda asked: Refuse() if asked.method == "PUT" and asked.path.endswith("manifest.json") else None):
        assert run(world, made)["status"] == "failed"
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "another machine's"))
    assert run(world, made) == {"status": "done"} and world.began()["one"] == 2
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    store = ArtifactStore(Storage(world.storage))
    standing = store.verify(made.kind, made.fingerprint)
    assert run(world, made) == {"status": "done"} and world.began()["one"] == 2
    assert store.verify(made.kind, made.fingerprint) == standing and standing.attempt == 2
    assert not list(Path(tmp_path, "cache", "staging").rglob("data.txt"))
