"""What a stage's work has made outlives an attempt that could not publish it."""

import errno
import os
from pathlib import Path

import pytest

from cft_ray.artifacts import unpublished
from cft_ray.artifacts.manifest import Manifest
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage
from cft_ray.storage.root import Storage

STAGE = Stage(DatasetSpec(toy="letters", columns={}, languages=("en",)), label="letters")
NAME = (STAGE.kind, STAGE.fingerprint)


@pytest.fixture
def store(tmp_path, monkeypatch) -> ArtifactStore:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return ArtifactStore(Storage(tmp_path / "storage"))


def finish(store: ArtifactStore, attempt: int, content: str = "made") -> tuple[Path, Manifest]:
    folder = store.stage_folder(*NAME, attempt)
    (folder / "deep").mkdir()
    (folder / "deep" / "data.txt").write_text(content)
    return folder, store.finished(STAGE, folder, outputs={"by": attempt}, attempt=attempt, seconds=7.0, versions={"x": "1"})


def adopt(store: ArtifactStore, attempt: int) -> tuple[Path, Manifest | None]:
    folder = store.stage_folder(*NAME, attempt)
    return folder, store.adopt(STAGE, folder, attempt)


def beside(store: ArtifactStore) -> list[str]:
    return [entry.name for entry in store.storage.list("artifacts", *NAME)]


def test_the_next_attempt_publishes_what_the_last_had_finished(store, tmp_path):
    finish(store, 1)
    folder, made = adopt(store, 3)
    assert made is not None and (made.attempt, made.folder, made.outputs, made.seconds) == (3, folder.name, {"by": 1}, 7.0)
    standing = store.publish(made)
    assert standing == made == store.verify(*NAME)
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "made"
    assert beside(store) == sorted([folder.name, "manifest.json"])
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_the_newest_whole_one_is_taken(store):
    first, _ = finish(store, 1, "first")
    second, _ = finish(store, 2, "second")
    (second / "deep" / "data.txt").write_text("cut sh")
    folder, made = adopt(store, 3)
    assert made is not None and made.outputs == {"by": 1}
    assert (folder / "deep" / "data.txt").read_text() == "first"
    assert first.is_dir() and not second.exists()


@pytest.mark.parametrize("harm", ["changed", "more", "gone", "record"])
def test_what_is_not_whole_is_not_taken(store, harm, tmp_path):
    left, _ = finish(store, 1)
    if harm == "changed":
        (left / "deep" / "data.txt").write_text("mode")
    elif harm == "more":
        (left / "more.txt").write_text("x")
    elif harm == "gone":
        (left / "deep" / "data.txt").unlink()
    else:
        (record,) = (tmp_path / "cache").rglob("*.json")
        record.write_text(record.read_text()[:-20])
    folder, made = adopt(store, 2)
    assert made is None and folder.is_dir() and not list(folder.iterdir())


def test_another_machine_has_nothing_to_take(store, tmp_path, monkeypatch):
    finish(store, 1)
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "another"))
    assert adopt(store, 2)[1] is None


def test_an_attempt_takes_nothing_of_later_ones(store):
    """A process that was stopped and goes on finds what its successor has finished."""
    finish(store, 5)
    assert adopt(store, 4)[1] is None


@pytest.mark.parametrize("first", ["the one that was taken over", "the one that took over"])
def test_both_may_publish_and_one_stands(store, first):
    """The process whose output was taken over was only stopped, and goes on."""
    _, old = finish(store, 1)
    _, new = adopt(store, 2)
    assert new is not None
    order = [old, new] if first == "the one that was taken over" else [new, old]
    try:
        made = [store.publish(each) for each in order]
    except (UserError, OSError) as error:
        pytest.fail(str(error))
    assert made == [order[0]] * 2 and store.verify(*NAME) == order[0]
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "made"
    store.tidy(order[0])
    assert beside(store) == sorted([order[0].folder, "manifest.json"])


def test_tidying_leaves_later_attempts_alone(store):
    """The artifact that stood was damaged and removed meanwhile; another is on its way."""
    folder, made = finish(store, 1)
    store.publish(made)
    later, coming = finish(store, 2)
    store.tidy(made)
    assert later.is_dir() and folder.is_dir()
    store.remove(*NAME)
    assert store.publish(coming) == coming == store.verify(*NAME)


@pytest.mark.parametrize("links", [True, False])
def test_files_are_taken_over_with_and_without_links(tmp_path, monkeypatch, links):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_text("x")
    if not links:

        def link(*_: object, **__: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "link", link)
    unpublished.take_over(tmp_path / "a", tmp_path / "b")
    ours, theirs = (tmp_path / name / "deep" / "file" for name in "ba")
    assert ours.read_text() == "x" and ours.samefile(theirs) is links
