"""The artifact store, leases and tables' storage on S3 (a local server that speaks it)."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3double import Cut, Delay, Garble, Refuse

from cft_ray.artifacts import lease, sound
from cft_ray.artifacts.lease import LeaseLost, Observer, holders
from cft_ray.artifacts.manifest import Manifest
from cft_ray.artifacts.sound import CorruptArtifact, MissingArtifact
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import UserError
from cft_ray.execute.context import local_checkpoint
from cft_ray.plan.digest import Digests
from cft_ray.plan.specs import Checkpoint, DatasetSpec
from cft_ray.plan.stage import Stage
from cft_ray.storage.root import Storage

STAGE = Stage(DatasetSpec(toy="letters", columns={}, languages=("en",)), label="letters")
NAME = (STAGE.kind, STAGE.fingerprint)


@pytest.fixture
def storage(s3, monkeypatch, tmp_path) -> Storage:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return Storage(f"s3://{s3.bucket()}/some/prefix", patience=30)


def finished(store: ArtifactStore, attempt: int = 1) -> Manifest:
    folder = store.stage_folder(*NAME, attempt)
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"0123456789" * 1000)
    return store.finished(STAGE, folder, outputs={"rows": 1}, attempt=attempt, seconds=1.0, versions={})


def publish(store: ArtifactStore, attempt: int = 1) -> Manifest:
    return store.publish(finished(store, attempt))


@pytest.fixture
def another_machine(monkeypatch, tmp_path) -> Callable[[], None]:
    """From now on, this process has the caches of a machine that has seen nothing yet."""
    return lambda: monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "another"))


def downloads(s3) -> int:
    return sum(asked.method == "GET" and asked.path.partition("?")[0].endswith("/weights") for asked in s3.asked)


def test_artifacts_are_uploaded_downloaded_once_and_checked(storage, s3, another_machine):
    store = ArtifactStore(storage)
    publish(store)
    assert (store.fetch(*NAME) / "model" / "weights").read_bytes() == b"0123456789" * 1000
    assert downloads(s3) == 0, "what was made here is here"
    another_machine()
    store = ArtifactStore(storage)
    assert store.exists(*NAME) and [made.fingerprint for made in store.manifests()] == [STAGE.fingerprint]
    folder = store.fetch(*NAME)
    assert (folder / "model" / "weights").read_bytes() == b"0123456789" * 1000
    marker = (folder / "model" / "weights").stat().st_mtime_ns
    assert store.fetch(*NAME) == folder and (folder / "model" / "weights").stat().st_mtime_ns == marker
    assert downloads(s3) == 1
    store.remove(*NAME)
    assert not store.exists(*NAME) and list(store.manifests()) == []


@pytest.mark.parametrize("content", [b"short", b"9876543210" * 1000])
def test_damage_is_found_before_use(storage, content, another_machine):
    store = ArtifactStore(storage)
    made = publish(store)
    another_machine()
    storage.write("artifacts", *NAME, made.folder, "model", "weights", data=content)
    with pytest.raises(CorruptArtifact):
        store.fetch(*NAME)
    assert not store.exists(*NAME)
    publish(store, attempt=2)
    assert (store.fetch(*NAME) / "model" / "weights").stat().st_size == 10_000


def test_one_bad_download_is_downloaded_again(storage, s3, another_machine):
    """A byte is changed on the way, once."""
    store, bad = ArtifactStore(storage), [Garble()]
    made = publish(store)
    another_machine()
    with s3.behaving(lambda asked: bad.pop() if bad and asked.method == "GET" and asked.path.endswith("weights") else None):
        folder = store.fetch(*NAME)
    assert not bad and (folder / "model" / "weights").read_bytes() == b"0123456789" * 1000
    assert store.verify(*NAME) == made


def test_what_another_uploads_is_left_alone(storage, s3):
    """Between the first file and the manifest: absent, and whoever looks removes nothing."""
    store = ArtifactStore(storage)
    uploading, go_on = threading.Event(), threading.Event()

    def hold(asked):
        if asked.method == "PUT" and asked.path.endswith("manifest.json"):
            uploading.set()
            assert go_on.wait(30)

    with s3.behaving(hold), ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish, store)
        assert uploading.wait(30)
        with pytest.raises(MissingArtifact):
            store.verify(*NAME)
        with pytest.raises(MissingArtifact):
            store.fetch(*NAME)
        assert store.present(store.listing()) == set() and store.listing() == [NAME]
        go_on.set()
        made = publishing.result()
    assert store.verify(*NAME) == made and (store.fetch(*NAME) / "model" / "weights").stat().st_size == 10_000


def test_two_publishers_at_once_agree_on_one(storage):
    store, together = ArtifactStore(storage), threading.Barrier(4)

    def one(attempt: int):
        made = finished(store, attempt)
        together.wait()  # whoever publishes removes what earlier attempts have not finished
        return store.publish(made)

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(one, range(1, 5)))
    standing = store.verify(*NAME)
    assert all(manifest == standing for manifest in made)
    assert [entry.name for entry in storage.list("artifacts", *NAME)] == sorted([standing.folder, "manifest.json"])
    assert (store.fetch(*NAME) / "model" / "weights").read_bytes() == b"0123456789" * 1000


def test_publishing_moves_nothing_and_survives_refusals(storage, s3, another_machine):
    store, turn = ArtifactStore(storage), itertools.count()
    with s3.behaving(lambda _: Refuse(503) if next(turn) % 2 else None):
        made = publish(store)
        assert store.verify(*NAME) == made
        another_machine()
        assert (store.fetch(*NAME) / "model" / "weights").read_bytes() == b"0123456789" * 1000
    assert not any(asked.copy for asked in s3.asked)


def test_one_of_many_gets_the_lease(storage):
    got: list[lease.Lease] = []

    def claim() -> None:
        if held := Observer(storage, STAGE.fingerprint).claim():
            got.append(held)

    crowd = [threading.Thread(target=claim) for _ in range(6)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert len(got) == 1 and set(holders(storage, [STAGE.fingerprint])) == {STAGE.fingerprint}
    got[0].release()
    assert not holders(storage, [STAGE.fingerprint])


def test_an_answer_that_is_lost_costs_no_lease(storage, s3):
    """Of the claim, of a heartbeat's write, of the proof: each was done, and the answer never came."""
    turn = itertools.count()
    with s3.behaving(lambda asked: Cut(after=True) if asked.method == "PUT" and next(turn) % 2 == 0 else None):
        held = Observer(storage, STAGE.fingerprint).claim()
        assert held is not None and held.attempt == 1
        held.prove()
        held.prove()
        assert Observer(storage, STAGE.fingerprint).claim() is None
        held.release()
    again = Observer(storage, STAGE.fingerprint).claim()
    assert again is not None and again.attempt == 2 and again.abandoned is None
    again.release()


def test_a_delayed_write_does_not_bring_a_lost_lease_back(storage, s3, monkeypatch):
    """The write leaves the old holder, another takes over, then the write arrives."""
    monkeypatch.setattr(lease, "BEAT", 1000.0)
    held = Observer(storage, STAGE.fingerprint).claim()
    late, taken = [Delay(1.5)], []
    assert held is not None
    with s3.behaving(lambda asked: late.pop() if late and asked.method == "PUT" else None), ThreadPoolExecutor(1) as pool:
        proving = pool.submit(held.prove)
        while late:
            time.sleep(0.01)
        observer = Observer(storage, STAGE.fingerprint, expiry=0.2)
        while not taken:
            taken += filter(None, [observer.claim()])
            time.sleep(0.05)
        with pytest.raises(LeaseLost):
            proving.result()
    taken[0].prove()
    taken[0].release()
    held.release()


def test_a_model_in_a_bucket_is_brought_once_and_is_what_was_planned(storage, s3):
    for name in ("config.json", "model.safetensors", "deep/merges.txt"):
        storage.write("model", *name.split("/"), data=name.encode() * 100)
    uri = f"{storage.uri}/model"
    digest = Digests().folder(uri, where="model")
    folder, kept = local_checkpoint(Checkpoint(path=uri, digest=digest))
    assert (Path(folder) / "deep" / "merges.txt").read_bytes() == b"deep/merges.txt" * 100
    s3.asked.clear()
    assert local_checkpoint(Checkpoint(path=uri, digest=digest))[0] == folder and not s3.asked and kept is not None
    storage.write("model", "config.json", data=b"another")
    with pytest.raises(UserError, match="changed"):
        local_checkpoint(Checkpoint(path=uri, digest="0" * 64))
    newer, _ = local_checkpoint(Checkpoint(path=uri, digest=Digests().folder(uri, where="model")))
    assert newer != folder and (Path(newer) / "config.json").read_bytes() == b"another"
    assert (Path(folder) / "config.json").read_bytes() == b"config.json" * 100


def test_a_removal_spares_what_was_published_since_the_look(storage, monkeypatch):
    """Between the judgement and the removal another process has removed the artifact itself, and published it anew."""
    store, other, looks = ArtifactStore(storage), ArtifactStore(storage), itertools.count(1)
    publish(store)

    def differs(storage: Storage, manifest: Manifest) -> str:
        if next(looks) == 2:
            other.remove(*NAME)
            publish(other, attempt=2)
        return "weights is missing"

    with monkeypatch.context() as patch, pytest.raises(CorruptArtifact):
        patch.setattr(sound, "difference", differs)
        store.verify(*NAME)
    assert other.verify(*NAME).attempt == 2 and (other.fetch(*NAME) / "model" / "weights").stat().st_size == 10_000


def test_what_was_removed_is_absent_until_it_is_published_again(storage):
    store = ArtifactStore(storage)
    made = publish(store)
    store.remove(*NAME)
    store.remove(*NAME)
    assert not store.exists(*NAME) and store.manifest(*NAME) is None and store.present([NAME]) == set()
    assert not storage.list("artifacts", *NAME, made.folder, recursive=True)
    with pytest.raises(MissingArtifact):
        store.verify(*NAME)
    again = publish(store, attempt=2)
    assert store.verify(*NAME) == again and store.present([NAME]) == {NAME}
