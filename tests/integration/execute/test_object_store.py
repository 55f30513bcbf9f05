"""The artifact store, leases and tables' storage on S3 (a local server that speaks it)."""

import os
import threading
from collections.abc import Iterator

import pytest

from cft_ray.artifacts import lease
from cft_ray.artifacts.lease import Observer, holder
from cft_ray.artifacts.storage import Storage
from cft_ray.artifacts.store import ArtifactStore, CorruptArtifact
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage

moto_server = pytest.importorskip("moto.server")
STAGE = Stage(DatasetSpec(toy="letters", columns={}, languages=("en",)), label="letters")
NAME = (STAGE.kind, STAGE.fingerprint)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def storage(endpoint, monkeypatch, tmp_path) -> Storage:
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    bucket = f"bucket-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return Storage(f"s3://{bucket}/some/prefix")


def publish(store: ArtifactStore, attempt: int = 1) -> None:
    folder = store.stage_folder(*NAME, attempt)
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"0123456789" * 1000)
    store.publish(STAGE, folder, outputs={"rows": 1}, attempt=attempt, seconds=1.0, versions={})


def test_bytes_come_and_go(storage):
    storage.check_writable()
    assert storage.read("runs", "x.json") is None and storage.list("runs") == []
    storage.write("runs", "x.json", data=b"{}")
    assert storage.read("runs", "x.json") == b"{}" and storage.size("runs", "x.json") == 2
    assert [entry.base_name for entry in storage.list("runs")] == ["x.json"]
    storage.delete("runs", "x.json")
    assert storage.read("runs", "x.json") is None


def test_a_bucket_that_is_not_there_is_a_user_error(storage):
    with pytest.raises(UserError, match="cannot be written"):
        Storage("s3://no-such-bucket-here/x").check_writable()


def test_artifacts_are_uploaded_downloaded_once_and_checked(storage):
    store = ArtifactStore(storage)
    publish(store)
    assert store.exists(*NAME) and [made.fingerprint for made in store.manifests()] == [STAGE.fingerprint]
    folder = store.fetch(*NAME)
    assert (folder / "model" / "weights").read_bytes() == b"0123456789" * 1000
    marker = (folder / "model" / "weights").stat().st_mtime_ns
    assert store.fetch(*NAME) == folder and (folder / "model" / "weights").stat().st_mtime_ns == marker
    store.remove(*NAME)
    assert not store.exists(*NAME) and list(store.manifests()) == []


@pytest.mark.parametrize("content", [b"short", b"9876543210" * 1000])
def test_damage_is_found_before_use(storage, content):
    store = ArtifactStore(storage)
    publish(store)
    storage.write("artifacts", *NAME, "model", "weights", data=content)
    with pytest.raises(CorruptArtifact):
        store.fetch(*NAME)
    assert not store.exists(*NAME)
    publish(store, attempt=2)
    assert (store.fetch(*NAME) / "model" / "weights").stat().st_size == 10_000


def test_one_of_many_gets_the_lease(storage, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE", 0.5)
    got: list[lease.Lease] = []

    def claim() -> None:
        if held := Observer(storage, STAGE.fingerprint).claim():
            got.append(held)

    crowd = [threading.Thread(target=claim) for _ in range(6)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert len(got) == 1 and holder(storage, STAGE.fingerprint) is not None
    got[0].release()
    assert holder(storage, STAGE.fingerprint) is None
