"""Checkpoints: whole or passed over, read back before the last one goes, and a lost holder's not in the way of the new one's."""

import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from numbersengine import Numbers

from cft_ray.artifacts.lease import LeaseLost
from cft_ray.metrics.schemas import table_of
from cft_ray.storage.errors import StorageError
from cft_ray.storage.local import Folder
from cft_ray.training import group
from cft_ray.training.checkpoint import Checkpoints, Progress
from cft_ray.training.records import StepRecords


@pytest.fixture(autouse=True)
def alone():
    with group.joined():
        yield


def progress(step: int) -> Progress:
    records = StepRecords(table_of("steps", [{"step": step, "loss": 1.0}]))
    return Progress(step=step, tokens=10 * step, samples=step, records=records, identity="this training")


def save(folder: Path, step: int, **given: Any) -> None:
    Checkpoints(str(folder / "steps"), folder / "local", **given).save(Numbers(step), progress(step))  # pyright: ignore[reportArgumentType]


def resumed(folder: Path, identity: str = "this training", **given: Any) -> tuple[int, Any] | None:
    """(step, value of the engine's numbers) of what is continued; None: nothing is, and the engine is as it was."""
    engine: Any = Numbers(0.0)
    found = Checkpoints(str(folder / "steps"), folder / "local", **given).resume(engine, identity)
    if found is None:
        assert engine.value == 0.0 and engine.restored == []
        return None
    expected = progress(found.step)
    assert replace(found, records=expected.records) == expected and found.records.table().equals(expected.records.table())
    return found.step, engine.value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "steps").iterdir())


def test_what_was_saved_is_continued_and_the_one_before_goes(tmp_path):
    assert resumed(tmp_path) is None
    save(tmp_path, 3)
    save(tmp_path, 6)
    assert names(tmp_path) == ["step-00000006-0001"] and resumed(tmp_path) == (6, 6.0)
    assert list((tmp_path / "local").iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_shards_and_markers_have_the_rights_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        save(tmp_path, 3)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "steps").rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(["marker.json", "shard-0-of-1.safetensors", "steps.parquet"], 0o666 & ~umask)
    folders = [path for path in (tmp_path / "steps").rglob("*") if path.is_dir()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in folders] == [0o777 & ~umask]


def kept(folder: Path) -> Path:
    """Two checkpoints, as after a death between the marker and the removal; returns the newer one."""
    save(folder, 3)
    shutil.copytree(folder / "steps" / "step-00000003-0001", folder / "kept")
    save(folder, 6)
    (folder / "kept").rename(folder / "steps" / "step-00000003-0001")
    return folder / "steps" / "step-00000006-0001"


@pytest.mark.parametrize(
    "damage",
    [
        *("no marker", "marker cut", "marker of nothing", "shard gone", "shard cut", "shard changed"),
        *("records gone", "records cut", "records changed"),
    ],
)
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    newer = kept(tmp_path)
    marker, shard, records = newer / "marker.json", newer / "shard-0-of-1.safetensors", newer / "steps.parquet"
    match damage:
        case "no marker":
            marker.unlink()
        case "marker cut":
            marker.write_bytes(marker.read_bytes()[:40])
        case "marker of nothing":
            marker.write_text("{}")
        case "shard gone":
            shard.unlink()
        case "shard cut":
            shard.write_bytes(shard.read_bytes()[:-8])
        case "shard changed":
            shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
        case "records gone":
            records.unlink()
        case "records cut":
            records.write_bytes(records.read_bytes()[:-8])
        case "records changed":
            records.write_bytes(records.read_bytes()[:-9] + b"\1" + records.read_bytes()[-8:])
    assert resumed(tmp_path) == (3, 3.0)
    shutil.rmtree(tmp_path / "steps" / "step-00000003-0001")
    assert resumed(tmp_path) is None  # begun anew, and no error for ever
    save(tmp_path, 9)
    assert resumed(tmp_path) == (9, 9.0)


def test_another_training_s_checkpoint_is_not_continued(tmp_path):
    save(tmp_path, 3)
    assert resumed(tmp_path, identity="another training") is None


def test_a_checkpoint_of_before_is_continued(tmp_path):
    """Without the attempt in its name, without digests in its marker, and with the step records there."""
    save(tmp_path, 6)
    old = (tmp_path / "steps" / "step-00000006-0001").rename(tmp_path / "steps" / "step-00000006")
    marker = json.loads((old / "marker.json").read_text())
    del marker["shards"], marker["records"]
    marker["rows"] = pq.read_table(old / "steps.parquet", columns=["step", "loss"]).to_pylist()
    (old / "steps.parquet").unlink()
    (old / "marker.json").write_text(json.dumps(marker))
    assert resumed(tmp_path) == (6, 6.0)
    save(tmp_path, 9)
    assert names(tmp_path) == ["step-00000009-0001"]


def test_a_lost_holder_s_checkpoint_leaves_the_new_one_s_alone(tmp_path):
    save(tmp_path, 3, attempt=1)
    save(tmp_path, 6, attempt=2)
    save(tmp_path, 9, attempt=1)  # it does not know yet
    assert names(tmp_path) == ["step-00000006-0002", "step-00000009-0001"]
    save(tmp_path, 9, attempt=2)
    assert names(tmp_path) == ["step-00000009-0002"]


@pytest.mark.parametrize("proofs", [0, 1, 2])
def test_who_has_lost_the_lease_stops(tmp_path, proofs):
    """At the beginning, before the marker, before the removal."""
    save(tmp_path, 3)
    left = [proofs]

    def prove():
        if left[0] == 0:
            raise LeaseLost("f" * 64)
        left[0] -= 1

    with pytest.raises(LeaseLost):
        save(tmp_path, 6, prove=prove)
    assert "step-00000003-0001" in names(tmp_path)
    assert resumed(tmp_path) == ((6, 6.0) if proofs == 2 else (3, 3.0))


@pytest.mark.parametrize("name", ["shard-0-of-1.safetensors", "marker.json"])
def test_what_reads_otherwise_than_written_removes_nothing(tmp_path, monkeypatch, name):
    save(tmp_path, 3)
    for call in ("download", "read"):
        real = getattr(Folder, call)

        def wrong(self, path, *more, real=real, call=call):
            found = real(self, path, *more)
            if "step-00000006" not in path or not path.endswith(name):
                return found
            return "0" * 64 if call == "download" else (b"{}", found[1])

        monkeypatch.setattr(Folder, call, wrong)
    save(tmp_path, 6)  # costs a warning
    assert "step-00000003-0001" in names(tmp_path)
    assert resumed(tmp_path) == (3, 3.0)


def test_a_storage_that_refuses_a_checkpoint_ends_no_training(tmp_path, monkeypatch):
    save(tmp_path, 3)
    real = Folder.upload

    def full(self, source, path):
        if "step-00000006" in path:
            raise OSError(28, "No space left on device")
        return real(self, source, path)

    monkeypatch.setattr(Folder, "upload", full)
    save(tmp_path, 6)
    assert resumed(tmp_path) == (3, 3.0)
    save(tmp_path, 9)
    assert resumed(tmp_path) == (9, 9.0)


def test_one_bad_download_is_downloaded_again(tmp_path, monkeypatch):
    save(tmp_path, 3)
    real, bad = Folder.download, ["0" * 64]

    def once(self, path, sink):
        digest = real(self, path, sink)
        return bad.pop() if bad else digest

    monkeypatch.setattr(Folder, "download", once)
    assert resumed(tmp_path) == (3, 3.0) and not bad


def test_a_storage_that_gives_nothing_is_an_error_and_no_fresh_start(tmp_path, monkeypatch):
    save(tmp_path, 3)

    def away(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Folder, "download", away)
    with pytest.raises(StorageError):
        resumed(tmp_path)
