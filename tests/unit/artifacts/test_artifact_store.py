"""Artifacts: published whole, checked, removed when damaged; hostile manifests refused."""

import hashlib
import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from cft_ray.artifacts import sound
from cft_ray.artifacts import store as store_module
from cft_ray.artifacts.lease import Observer
from cft_ray.artifacts.manifest import MANIFEST, BadManifest, decode
from cft_ray.artifacts.sound import CorruptArtifact, MissingArtifact
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage
from cft_ray.storage.errors import StorageError
from cft_ray.storage.root import Storage

STAGE = Stage(DatasetSpec(toy="letters", columns={}, languages=("en",)), {"role": "a" * 64}, label="letters")
NAME = (STAGE.kind, STAGE.fingerprint)


@pytest.fixture
def store(tmp_path, monkeypatch) -> ArtifactStore:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return ArtifactStore(Storage(tmp_path / "storage"))


def publish(store: ArtifactStore, text: str = "content", attempt: int = 1):
    folder = store.stage_folder(*NAME, attempt)
    (folder / "deep").mkdir()
    (folder / "deep" / "data.txt").write_text(text)
    (folder / "tables").mkdir()
    pq.write_table(pa.table({"step": [1, 2]}), folder / "tables" / "steps.parquet")
    return store.publish(store.finished(STAGE, folder, outputs={"rows": 2}, attempt=attempt, seconds=1.5, versions={"x": "1"}))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_what_is_published_has_the_rights_that_the_umask_leaves(store, umask):
    """The artifact, what a later attempt takes over, the lease, and the number of the attempt."""
    before = os.umask(umask)
    try:
        lease = Observer(store.storage, STAGE.fingerprint).claim()
        assert lease is not None
        folder = store.stage_folder(*NAME, 1)
        (folder / "data.txt").write_text("content")
        store.finished(STAGE, folder, outputs={}, attempt=1, seconds=1.0, versions={})
        taken = store.adopt(STAGE, store.stage_folder(*NAME, 2), 2)  # the first could not publish
        assert taken is not None
        store.publish(taken)
        lease.release()
    finally:
        os.umask(before)
    paths = [path for path in store.storage.folder().rglob("*") if path.name != ".lock"]
    assert {"manifest.json", "data.txt", "000001.json"} < {path.name for path in paths}
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert modes == {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in paths}


def test_an_artifact_exists_once_published(store):
    folder = store.stage_folder(*NAME, 1)
    (folder / "half").write_text("…")
    assert not store.exists(*NAME) and list(store.manifests()) == []
    made = publish(store, attempt=2)
    assert not folder.exists()
    assert store.exists(*NAME) and list(store.manifests()) == [made] == [store.verify(*NAME)]
    assert made.outputs == {"rows": 2} and made.settings == STAGE.spec.identity() and made.inputs == {"role": "a" * 64}
    assert made.rows == {"steps": 2} and (made.attempt, made.seconds, made.versions) == (2, 1.5, {"x": "1"})
    digests = {file.path: (file.size, file.sha256) for file in made.files}
    assert digests["deep/data.txt"] == (7, hashlib.sha256(b"content").hexdigest())
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "content"


def test_the_first_of_two_publishers_stays(store):
    first = publish(store, "first")
    assert publish(store, "second", attempt=2) == first
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "first"
    assert [entry.name for entry in store.storage.list("artifacts", STAGE.kind)] == [STAGE.fingerprint]


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "manifest cut"])
def test_damage_is_found_and_the_artifact_removed(store, damage):
    publish(store)
    folder = store.fetch(*NAME)
    data, manifest = folder / "deep" / "data.txt", folder.parent / MANIFEST
    match damage:
        case "truncated":
            data.write_text("cont")
        case "changed":
            data.write_text("CONTENT")
        case "missing":
            data.unlink()
        case "manifest cut":
            manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(CorruptArtifact) as raised:
        store.verify(*NAME)
    assert not isinstance(raised.value, MissingArtifact)
    assert not store.exists(*NAME) and (damage == "manifest cut" or not folder.exists())
    publish(store, attempt=2)
    store.verify(*NAME)
    assert store.fetch(*NAME) != folder and not folder.exists()


def test_files_without_a_manifest_are_absent_and_another_s(store):
    """They are on their way: whoever looks leaves them alone."""
    folder = store.stage_folder(*NAME, 1)
    (folder / "half").write_text("…")
    for look in (store.verify, store.fetch, store.require):
        with pytest.raises(MissingArtifact):
            look(*NAME)
    store.remove(*NAME)
    assert (folder / "half").read_text() == "…" and store.listing() == [NAME] and store.present([NAME]) == set()


def test_a_second_look_saves_what_was_read_badly_once(store, monkeypatch):
    made = publish(store)
    real, bad = sound.file_digest, ["0" * 64]
    monkeypatch.setattr(sound, "file_digest", lambda path: bad.pop() if bad else real(path))
    assert store.verify(*NAME) == made and store.exists(*NAME) and not bad


def test_publishers_at_once_agree_on_one(store):
    """Each fills a folder of its own; one manifest stands, all get it, and only its files stay."""
    together = threading.Barrier(6)

    def one(number):
        folder = store.stage_folder(*NAME, number)
        (folder / "data.txt").write_text(f"{number}")
        made = store.finished(STAGE, folder, outputs={"by": number}, attempt=number, seconds=1.0, versions={})
        together.wait()  # whoever publishes removes what earlier attempts have not finished
        return store.publish(made)

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(one, range(1, 7)))
    assert all(manifest == made[0] for manifest in made)
    standing = store.verify(*NAME)
    assert standing == made[0] and (store.fetch(*NAME) / "data.txt").read_text() == str(standing.outputs["by"])
    assert [entry.name for entry in store.storage.list("artifacts", *NAME)] == [standing.folder, MANIFEST]


def test_a_judgement_does_not_remove_what_was_made_since(store, monkeypatch):
    """One process finds damage; before it acts, another has removed the artifact and made it anew."""
    publish(store, "damaged")
    (store.fetch(*NAME) / "deep" / "data.txt").write_text("DAMAGED")
    real = sound.difference

    def slow(storage, manifest):
        found = real(storage, manifest)
        if manifest.attempt == 1 and store.manifest(*NAME).attempt == 1:
            store.remove(*NAME)
            publish(store, "sound", attempt=2)
        return found

    monkeypatch.setattr(sound, "difference", slow)
    assert store.verify(*NAME).attempt == 2
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "sound"


def test_files_of_dead_attempts_go_and_of_later_ones_stay(store):
    dead, later = store.stage_folder(*NAME, 1), store.stage_folder(*NAME, 9)
    publish(store, attempt=3)
    assert not dead.exists() and later.is_dir()


def test_artifacts_of_before_are_read(store):
    """Once the files lay beside the manifest, which named no folder."""
    made = publish(store)
    folder = store.fetch(*NAME)
    for path in list(folder.iterdir()):
        path.rename(folder.parent / path.name)
    folder.rmdir()
    text = json.loads((folder.parent / MANIFEST).read_text())
    del text["folder"]
    (folder.parent / MANIFEST).write_text(json.dumps(text))
    old = store.verify(*NAME)
    assert old.files == made.files and store.fetch(*NAME) == folder.parent
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "content"
    (folder.parent / "deep" / "data.txt").write_text("CONTENT")
    with pytest.raises(CorruptArtifact):
        store.verify(*NAME)
    assert not store.exists(*NAME) and not (folder.parent / "deep" / "data.txt").exists()


def test_fetch_refuses_a_truncated_artifact(store):
    publish(store)
    (store.fetch(*NAME) / "deep" / "data.txt").write_text("")
    with pytest.raises(CorruptArtifact):
        store.fetch(*NAME)
    assert not store.exists(*NAME)


def hostile(**changes) -> bytes:
    good = {
        "fingerprint": STAGE.fingerprint,
        "kind": STAGE.kind,
        "version": 1,
        "settings": {},
        "inputs": {},
        "files": [],
        "created": "2026-01-01T00:00:00+00:00",
        "attempt": 1,
        "seconds": 1,
    }
    return json.dumps({**good, **changes}).encode()


def file(path: str, size: object = 1, digest: str = "0" * 64) -> dict[str, object]:
    return {"path": path, "size": size, "sha256": digest}


def test_a_plain_manifest_is_read():
    assert decode(hostile(files=[file("model/a.safetensors")]), *NAME).files[0].path == "model/a.safetensors"


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"files": [file(path)]}
            for path in ("../x", "/etc/passwd", "a/../../x", "a\\..\\x", "", ".", "a//b", "a\0b", MANIFEST)
        ),
        {"files": [file("a"), file("a")]},
        {"files": [file("a", size=-1)]},
        {"files": [file("a", size="1")]},
        {"files": [file("a", digest="z" * 64)]},
        {"files": {"a": 1}},
        {"fingerprint": "b" * 64},
        {"kind": "finetune"},
        {"inputs": {"role": "../../x"}},
        {"attempt": 0},
        *({"folder": name} for name in ("..", "0001", "0001-0123456", "0001-0123456z", "a/0001-01234567", "0001-01234567/..")),
        {"seconds": "long"},
    ],
)
def test_hostile_manifests_are_refused(changes):
    with pytest.raises(BadManifest):
        decode(hostile(**changes), *NAME)


def test_deeply_nested_and_huge_manifests_are_refused(store):
    with pytest.raises(BadManifest):
        decode(b'{"settings":' + b"[" * 100_000, *NAME)
    store.storage.write("artifacts", *NAME, MANIFEST, data=b" " * (16 * 2**20 + 1))
    with pytest.raises(CorruptArtifact):
        store.verify(*NAME)


def test_foreign_folders_are_not_artifacts(store):
    store.storage.write("artifacts", "Not A Kind", "x", MANIFEST, data=b"{}")
    store.storage.write("artifacts", STAGE.kind, "not-a-fingerprint", MANIFEST, data=b"{}")
    assert list(store.manifests()) == []


def test_a_manifest_that_is_refused_loses_no_output(store, monkeypatch):
    folder = store.stage_folder(*NAME, 2)
    (folder / "data.txt").write_text("hours of work")

    def refuse(*_, **__):
        raise StorageError("refused")

    monkeypatch.setattr(store.storage, "put_if_absent", refuse)
    with pytest.raises(UserError, match="refused"):
        store.publish(store.finished(STAGE, folder, outputs={}, attempt=2, seconds=1.0, versions={}))
    assert (folder / "data.txt").read_text() == "hours of work"


def test_a_copy_that_has_changed_is_fetched_anew(store, monkeypatch, tmp_path):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    publish(store)
    store.storage.local = False  # as of an object store: what is asked for is downloaded and kept
    cached = store.fetch(*NAME)
    assert tmp_path / "cache" in cached.parents and store.fetch(*NAME) == cached
    (cached / "deep" / "data.txt").write_text("cut")
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "content"


def test_a_copy_of_another_artifact_of_the_same_name_is_not_taken(store, monkeypatch, tmp_path):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    publish(store, "first")
    store.storage.local = False
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "first"
    store.storage.local = True
    store.remove(*NAME)
    publish(store, "other", attempt=2)
    store.storage.local = False
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "other"


def test_a_removal_spares_what_was_published_since_the_look(tmp_path, monkeypatch):
    """Between the judgement and the removal another process has removed the artifact itself, and published it anew."""
    store, other, looks = ArtifactStore(Storage(tmp_path)), ArtifactStore(Storage(tmp_path)), []
    publish(store)

    def differs(storage: object, manifest: object) -> str:
        looks.append(manifest)
        if len(looks) == 2:
            other.remove(*NAME)
            publish(other, attempt=2)
        return "a file is missing"

    with monkeypatch.context() as patch, pytest.raises(CorruptArtifact):
        patch.setattr(sound, "difference", differs)
        store.verify(*NAME)
    assert other.verify(*NAME).attempt == 2


def test_only_an_artifacts_tables_are_fetched_for_its_rows(bucket, tmp_path, monkeypatch):
    """Weights lie beside them."""
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    store = ArtifactStore(Storage("s3://bucket/runs"))
    folder = store.stage_folder(*NAME, 1)
    (folder / "tables").mkdir()
    pq.write_table(pa.table({"step": [1, 2]}), folder / "tables" / "steps.parquet")
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"w" * 1000)
    made = store.publish(store.finished(STAGE, folder, outputs={}, attempt=1, seconds=1.0, versions={}))
    key = f"runs/artifacts/{NAME[0]}/{NAME[1]}/{made.folder}/model/weights"
    assert (store.fetch(*NAME) / "model" / "weights").stat().st_size == 1000
    bucket.delete(key)  # whoever fetched it would fail
    assert store.fetch_tables(made)["steps"] == store.fetch(*NAME) / "tables" / "steps.parquet"  # it was made here
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "another machine"))
    store = ArtifactStore(Storage("s3://bucket/runs"))
    found = store.fetch_tables(made)
    assert list(found) == ["steps"] and pq.read_table(found["steps"])["step"].to_pylist() == [1, 2]
    assert store.fetch_tables(made) == found
    bucket.put(f"runs/artifacts/{NAME[0]}/{NAME[1]}/{made.folder}/tables/steps.parquet", b"damaged")
    with pytest.raises(CorruptArtifact, match=r"tables/steps\.parquet has another"):
        ArtifactStore(Storage("s3://bucket/runs")).fetch_tables(made.model_copy(update={"label": "not kept here yet"}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"content", None),
        (None, "deep/data.txt is missing"),
        (b"cont", "deep/data.txt has 4 bytes instead of 7"),
        (b"CONTENT", "deep/data.txt has another SHA-256"),
    ],
)
def test_how_an_artifact_differs_from_its_manifest_is_said(store, content, said):
    made = publish(store)
    path = store.storage.folder("artifacts", *NAME, made.folder, "deep", "data.txt")
    path.chmod(0o600)
    path.unlink() if content is None else path.write_bytes(content)
    assert sound.difference(store.storage, made) == said


def test_files_and_their_names_are_on_the_disk_before_the_manifest_says_so(store, monkeypatch):
    synced: list[Path] = []

    def flushed(path: Path) -> None:
        synced.append(path)
        assert not store.exists(*NAME)

    monkeypatch.setattr(store_module, "sync", flushed)
    made = publish(store)
    folder = store.storage.folder("artifacts", *NAME)
    inside = {made.folder, *(f"{made.folder}/{name}" for name in ("deep", "deep/data.txt", "tables", "tables/steps.parquet"))}
    assert {path.relative_to(folder).as_posix() for path in synced if path.is_relative_to(folder)} == {".", *inside}
    assert folder.parent in synced
