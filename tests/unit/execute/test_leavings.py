"""What attempts leave beside a finished artifact goes, at once or at the next run; what a living process works with stays."""

from pathlib import Path

import pytest
from toystage import ToySpec

from cft_ray.artifacts.lease import Observer
from cft_ray.artifacts.manifest import Manifest
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.execute.leavings import clear, clear_left
from cft_ray.plan.stage import Stage
from cft_ray.storage.errors import StorageError
from cft_ray.storage.root import Storage


@pytest.fixture
def store(tmp_path, monkeypatch) -> ArtifactStore:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return ArtifactStore(Storage(tmp_path / "storage"))


def published(store: ArtifactStore, name: str) -> Manifest:
    stage = Stage(ToySpec(name=name, log="x"), label=name)
    folder = store.stage_folder(stage.kind, stage.fingerprint, 1)
    (folder / "data.txt").write_text(name)
    return store.publish(store.finished(stage, folder, outputs={}, attempt=1, seconds=1.0, versions={}))


def litter(store: ArtifactStore, made: Manifest) -> None:
    store.storage.write("checkpoints", made.fingerprint, "half", data=b"x")
    scratch = store.scratch(made.fingerprint)
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "half").write_text("x")


def left(store: ArtifactStore, made: Manifest) -> tuple[bool, bool]:
    """Whether checkpoints are there, and scratch."""
    return bool(list(store.storage.list("checkpoints", made.fingerprint))), store.scratch(made.fingerprint).exists()


def test_checkpoints_and_scratch_go_and_the_artifact_stays(store):
    made, other = published(store, "a"), published(store, "b")
    for each in (made, other):
        litter(store, each)
    clear(store, made)
    assert left(store, made) == (False, False) and left(store, other) == (True, True)
    assert store.verify(made.kind, made.fingerprint) == made


def test_the_next_run_finds_what_was_left_of_earlier_ones(store):
    both, checkpoint, scratch, clean = (published(store, name) for name in "abcd")
    litter(store, both)
    litter(store, checkpoint)
    (store.scratch(checkpoint.fingerprint) / "half").unlink()
    store.scratch(checkpoint.fingerprint).rmdir()
    store.scratch(scratch.fingerprint).mkdir(parents=True)
    unfinished = "f" * 64
    store.storage.write("checkpoints", unfinished, "half", data=b"x")
    clear_left(store, [both, checkpoint, scratch, clean])
    assert {left(store, made) for made in (both, checkpoint, scratch, clean)} == {(False, False)}
    assert list(store.storage.list("checkpoints", unfinished)), "nothing stands in its place yet"


def test_what_a_living_process_holds_stays(store):
    made, free = published(store, "a"), published(store, "b")
    for each in (made, free):
        litter(store, each)
    held = Observer(store.storage, made.fingerprint).claim()
    assert held is not None
    clear_left(store, [made, free])
    assert left(store, made) == (True, True) and left(store, free) == (False, False)
    held.release()
    clear_left(store, [made])
    assert left(store, made) == (False, False)


@pytest.mark.parametrize("error", [OSError("busy"), StorageError("away")])
def test_what_cannot_be_removed_costs_its_space_and_nothing_else(store, monkeypatch, error):
    made = published(store, "a")
    litter(store, made)

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store, "tidy", fail)
        clear(store, made)
    with monkeypatch.context() as patch:
        patch.setattr(store.storage, "list", lambda *_, **__: (_ for _ in ()).throw(StorageError("away")))
        clear_left(store, [made])
    assert store.exists(made.kind, made.fingerprint)
    assert Path(store.storage.location("checkpoints", made.fingerprint)).exists()
