"""Artifacts: published whole, checked, removed when damaged; hostile manifests refused."""

import hashlib
import json

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from cft_ray.artifacts.manifest import MANIFEST, BadManifest, decode
from cft_ray.artifacts.storage import Storage
from cft_ray.artifacts.store import ArtifactStore, CorruptArtifact
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage

STAGE = Stage(DatasetSpec(toy="letters", columns={}, languages=("en",)), {"role": "a" * 64}, label="letters")
NAME = (STAGE.kind, STAGE.fingerprint)


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(Storage(tmp_path / "storage"))


def publish(store: ArtifactStore, text: str = "content", attempt: int = 1):
    folder = store.stage_folder(*NAME, attempt)
    (folder / "deep").mkdir()
    (folder / "deep" / "data.txt").write_text(text)
    (folder / "tables").mkdir()
    pq.write_table(pa.table({"step": [1, 2]}), folder / "tables" / "steps.parquet")
    return store.publish(STAGE, folder, outputs={"rows": 2}, attempt=attempt, seconds=1.5, versions={"x": "1"})


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
    assert [entry.base_name for entry in store.storage.list("artifacts", STAGE.kind)] == [STAGE.fingerprint]


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "manifest cut", "manifest gone"])
def test_damage_is_found_and_the_artifact_removed(store, damage):
    publish(store)
    folder = store.fetch(*NAME)
    data, manifest = folder / "deep" / "data.txt", folder / MANIFEST
    match damage:
        case "truncated":
            data.write_text("cont")
        case "changed":
            data.write_text("CONTENT")
        case "missing":
            data.unlink()
        case "manifest cut":
            manifest.write_bytes(manifest.read_bytes()[:100])
        case "manifest gone":
            manifest.unlink()
    with pytest.raises(CorruptArtifact):
        store.verify(*NAME)
    assert not store.exists(*NAME) and not folder.exists()
    publish(store)
    store.verify(*NAME)


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


@pytest.mark.parametrize("there", [False, True])
def test_a_rename_that_is_refused_loses_no_output(store, monkeypatch, there):
    """Without an artifact the finished output stays and the error is told; with one, of another run, it is ours to drop."""
    folder = store.stage_folder(*NAME, 2)
    (folder / "data.txt").write_text("hours of work")
    refused = OSError("refused")

    def rename(self, target):
        if there:
            monkeypatch.undo()
            publish(store, "another run's")
        raise refused

    monkeypatch.setattr(type(folder), "rename", rename)
    if there:
        store.publish(STAGE, folder, outputs={}, attempt=2, seconds=1.0, versions={})
        assert not folder.exists() and (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "another run's"
    else:
        with pytest.raises(UserError, match="refused"):
            store.publish(STAGE, folder, outputs={}, attempt=2, seconds=1.0, versions={})
        assert (folder / "data.txt").read_text() == "hours of work"


@pytest.mark.parametrize("change", ["length", "manifest"])
def test_a_cached_download_that_does_not_match_its_manifest_is_fetched_anew(store, monkeypatch, tmp_path, change):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    made = publish(store)
    store.storage.local = False  # as of an object store: what is asked for is downloaded and kept
    cached = store.fetch(*NAME)
    assert tmp_path / "cache" in cached.parents and store.fetch(*NAME) == cached
    if change == "length":
        (cached / "deep" / "data.txt").write_text("cut")
    else:  # of another artifact that was published under the same name
        (cached / "deep" / "data.txt").write_text("CONTENT")
        text = (cached / MANIFEST).read_text()
        (cached / MANIFEST).write_text(text.replace('"attempt": 1', '"attempt": 2').replace('"attempt":1', '"attempt":2'))
    assert (store.fetch(*NAME) / "deep" / "data.txt").read_text() == "content"
    assert (cached / MANIFEST).read_bytes() == made.encode()
