"""What a stage is given while a plan runs: its inputs from the store, its models, and where its rows and its progress go."""

import pickle
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from toystage import ToySpec

from cft_ray.artifacts.lease import LeaseLost, Observer
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import UserError
from cft_ray.execute import context as module
from cft_ray.execute.context import RunContext, local_checkpoint
from cft_ray.execute.work import Work
from cft_ray.grid.loggers import Logger
from cft_ray.plan.digest import Digests
from cft_ray.plan.specs import Checkpoint, DriftSpec
from cft_ray.plan.stage import Stage
from cft_ray.storage import retry
from cft_ray.storage.root import Storage


class Heard:
    """Reporter and board at once: keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def append(self, table: str, rows: list[dict], *, fingerprint: str, attempt: int, sequence: int) -> None:
        self.heard.append((table, rows, fingerprint, attempt, sequence))

    def tell(self, fingerprint: str, values: dict[str, Any], *, beat: bool) -> None:
        self.heard.append((fingerprint, values, beat))


@pytest.fixture
def storage(tmp_path, monkeypatch) -> Storage:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return Storage(tmp_path / "storage")


def made(storage: Storage, name: str) -> Stage:
    """A stage whose artifact is there."""
    stage = Stage(ToySpec(name=name, log="x"), label=name)
    store = ArtifactStore(storage)
    folder = store.stage_folder(stage.kind, stage.fingerprint, 1)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(name)
    store.publish(store.finished(stage, folder, outputs={"made": name}, attempt=1, seconds=1.0, versions={}))
    return stage


def context(storage: Storage, output: Path, **checkpoints: Checkpoint) -> tuple[RunContext, Heard]:
    left = made(storage, "left")
    stage = Stage(DriftSpec(checkpoints=checkpoints), {"left": left.fingerprint}, "drift")
    loggers = (Logger(name="tensorboard"),)
    work = Work(stage, {left.fingerprint: left.kind}, storage.uri, "study", "run", loggers, "host-3")
    held = Observer(storage, stage.fingerprint).claim()
    assert held is not None
    heard: Any = Heard()
    return RunContext(work, output, held.attempt, held.fence, heard, heard), heard


def test_inputs_are_the_artifacts_of_the_roles(storage, tmp_path):
    found, _ = context(storage, tmp_path / "out")
    assert (found.input("left") / "model" / "config.json").read_text() == "left"
    assert found.summary("left") == {"made": "left"} and found.model("left") == str(found.input("left") / "model")
    assert (found.output, found.attempt, found.host, found.loggers) == (
        tmp_path / "out",
        1,
        "host-3",
        (Logger(name="tensorboard"),),
    )
    with pytest.raises(KeyError):
        found.input("right")


def test_a_checkpoint_is_a_model_role_as_well(storage, tmp_path):
    found, _ = context(storage, tmp_path / "out", right=Checkpoint(path=str(tmp_path / "mine"), digest="d"))
    assert found.model("right") == str(tmp_path / "mine") == found.model("right")


def test_each_storage_and_stage_has_scratch_and_checkpoints_of_its_own(storage, tmp_path):
    found, _ = context(storage, tmp_path / "out")
    fingerprint = found.stage.fingerprint
    place = sha256(storage.uri.encode()).hexdigest()[:12]
    assert found.scratch == tmp_path / "cache" / "scratch" / place / fingerprint and found.scratch.is_dir()
    assert found.checkpoints == f"{storage.uri}/checkpoints/{fingerprint}"
    (found.scratch / "half").write_text("x")
    again, _ = context(Storage(tmp_path / "other"), tmp_path / "out")
    assert again.scratch != found.scratch and (found.scratch / "half").exists()


def test_rows_go_out_under_the_attempt_and_progress_is_a_beat(storage, tmp_path):
    found, heard = context(storage, tmp_path / "out")
    found.report("steps", ({"step": 3},), 3)  # type: ignore[arg-type]
    found.progress(done=1, total=2)
    fingerprint = found.stage.fingerprint
    assert heard.heard == [("steps", [{"step": 3}], fingerprint, 1, 3), (fingerprint, {"done": 1, "total": 2}, True)]


def test_who_was_taken_over_cannot_prove_it(storage, tmp_path):
    found, _ = context(storage, tmp_path / "out")
    found.prove()
    storage.delete("leases", f"{found.stage.fingerprint}.json")
    with pytest.raises(LeaseLost):
        found.prove()


def test_it_may_be_sent_to_other_processes(storage, tmp_path):
    found, _ = context(storage, tmp_path / "out")
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 - our own bytes
    assert again.stage == found.stage and again.input("left") == found.input("left")
    assert (again.output, again.attempt, again.scratch) == (found.output, found.attempt, found.scratch)
    again.prove()


def model_folder(path: Path, text: str = "{}") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(text)
    return path


def test_a_model_that_lies_elsewhere_is_brought_once_and_must_be_the_planned_one(storage, tmp_path, monkeypatch):
    """As of a bucket: the folder's storage says that it is not local."""
    folder = model_folder(tmp_path / "model")

    class Away(Storage):
        def __init__(self, uri: str) -> None:
            super().__init__(uri)
            self.local = False

        def mirror(self, target: Path, *parts: str) -> None:
            target.mkdir(parents=True, exist_ok=True)
            (target / "config.json").write_text((folder / "config.json").read_text())

    monkeypatch.setattr(module, "Storage", Away)
    monkeypatch.setattr(Away, "list", lambda self, **_: Storage(folder).list(recursive=True))
    digest = Digests(tmp_path / "known").folder(str(folder), where="here")
    for planned in (digest, None):
        path, kept = local_checkpoint(Checkpoint(path=str(folder), digest=planned))
        assert kept is not None and Path(path) == kept.path and (kept.path / "config.json").read_text() == "{}"
        assert tmp_path / "cache" in kept.path.parents
        assert local_checkpoint(Checkpoint(path=str(folder), digest=planned))[0] == path
    (folder / "config.json").write_text("{ }")
    assert local_checkpoint(Checkpoint(path=str(folder), digest=digest))[0] != path
    unplanned, _ = local_checkpoint(Checkpoint(path=str(folder)))
    assert (Path(unplanned) / "config.json").read_text() == "{ }", "without a digest what a listing says names it"
    with pytest.raises(UserError, match="changed since they were planned") as raised:
        local_checkpoint(Checkpoint(path=str(folder), digest="0" * 64))
    assert raised.value.where == str(folder)


def test_a_checkpoint_without_a_place_is_refused():
    with pytest.raises(UserError, match="neither a hub id nor a path"):
        local_checkpoint(Checkpoint())


@pytest.mark.parametrize("offline", [True, False])
def test_of_a_hub_model_safetensors_and_what_belongs_to_them_are_taken(monkeypatch, offline):
    asked: list[Any] = []
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "vocab[1].txt"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repository, *, revision: names)

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str] | None = None) -> str:
        asked.append((repository, revision, allow_patterns))
        return "/hub/folder"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert local_checkpoint(Checkpoint(hub="org/m", revision="abc")) == ("/hub/folder", None)
    wanted = None if offline else ["config.json", "model.safetensors", "vocab[[]1].txt"]
    assert asked == [("org/m", "abc", wanted)]


def test_a_machine_that_has_a_model_needs_no_hub(monkeypatch):
    """Which is asked again only where there is no copy."""
    there = [False, True]

    def away(*_: Any, **__: Any) -> list[str]:
        raise httpx.ConnectError("no way")

    def snapshot(repository: str, *, revision: str | None, local_files_only: bool) -> str:
        if not there.pop(0):
            raise LocalEntryNotFoundError("not here")
        return "/hub/folder"

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", away)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setenv("CFT_RAY_STORAGE_PATIENCE", "30")
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: 0.0)
    assert local_checkpoint(Checkpoint(hub="org/m", revision="abc")) == ("/hub/folder", None)
    assert there == []


@pytest.mark.parametrize(("revision", "where"), [(None, "org/m@main"), ("abc", "org/m@abc")])
def test_a_hub_model_that_cannot_be_had_is_named(monkeypatch, revision, where):
    def refuse(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("not here\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither the hub nor this machine") as raised:
        local_checkpoint(Checkpoint(hub="org/m", revision=revision))
    assert raised.value.where == where


def test_without_a_digest_the_files_below_folders_name_a_model_too(tmp_path):
    folder = model_folder(tmp_path / "model")
    (folder / "below").mkdir()
    keys = []
    for text in ("1", "22"):
        (folder / "below" / "weights").write_text(text)
        keys.append(module._key(Storage(folder), None))
    (tmp_path / "elsewhere").mkdir()
    keys += [module._key(Storage(tmp_path / "elsewhere"), None), module._key(Storage(folder), "d")]
    assert len(set(keys)) == 4 and keys[3] == module._key(Storage(folder), "d") and {len(key) for key in keys} == {32}
