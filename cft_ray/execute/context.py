"""`StageContext` as it is while a plan runs: artifacts from the store, rows to the reporting actor."""

import contextlib
import glob
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from cft_ray.artifacts.lease import Fence
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import UserError
from cft_ray.execute.leavings import CHECKPOINTS
from cft_ray.execute.progress import Board
from cft_ray.execute.work import Work
from cft_ray.metrics.reporter import Reporter
from cft_ray.plan.digest import Digests
from cft_ray.plan.specs import Checkpoint
from cft_ray.plan.stage import Stage
from cft_ray.storage.cache import Kept, keep
from cft_ray.storage.hub import from_hub, transient
from cft_ray.storage.root import Storage


class RunContext:
    """See `cft_ray.stages.context.StageContext`. A stage may give it to the tasks and actors that it starts.

    Args:
        work: what the trial was told.
        output: empty local folder, to be filled.
        attempt: 1 for the first.
        fence: of the lease under which it runs.
        reporter: takes rows.
        board: takes progress.
    """

    def __init__(self, work: Work, output: Path, attempt: int, fence: Fence, reporter: Reporter, board: Board) -> None:
        self.stage: Stage = work.stage
        self.output = output
        self._store = ArtifactStore(Storage(work.storage))
        self.scratch = self._store.scratch(work.stage.fingerprint)
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.checkpoints = f"{work.storage}/{CHECKPOINTS}/{work.stage.fingerprint}"
        self.attempt = attempt
        self.loggers = work.loggers
        self.host = work.host
        self._work, self._fence, self._reporter, self._board = work, fence, reporter, board
        self._models: dict[str, tuple[str, Kept | None]] = {}

    def __reduce__(self) -> tuple[type["RunContext"], tuple[Any, ...]]:
        return RunContext, (self._work, self.output, self.attempt, self._fence, self._reporter, self._board)

    def input(self, role: str) -> Path:
        """Local folder of the artifact of that role; verified."""
        fingerprint = self.stage.inputs[role]
        return self._store.fetch(self._work.kinds[fingerprint], fingerprint)

    def summary(self, role: str) -> dict[str, Any]:
        """``outputs`` of the manifest of the artifact of that role."""
        fingerprint = self.stage.inputs[role]
        return self._store.require(self._work.kinds[fingerprint], fingerprint).outputs

    def model(self, role: str) -> str:
        """Local Hugging Face folder of a model role: an artifact's ``model/``, or the checkpoint that the spec names.

        Raises:
            UserError: the checkpoint cannot be had.
        """
        if role in self.stage.inputs:
            return str(self.input(role) / "model")
        if role not in self._models:  # in use as long as this object lives
            self._models[role] = local_checkpoint(getattr(self.stage.spec, "checkpoints", {})[role])
        return self._models[role][0]

    def prove(self) -> None:
        """Return if this attempt still is the one that works on the stage (`cft_ray.artifacts.lease`)."""
        self._fence.prove()

    def report(self, table: str, rows: Sequence[dict[str, Any]], sequence: int) -> None:
        """Send rows to the tables now; returns when they are durable."""
        self._reporter.append(table, list(rows), fingerprint=self.stage.fingerprint, attempt=self.attempt, sequence=sequence)

    def progress(self, **values: Any) -> None:
        """Values for the live display; cheap, may be dropped."""
        self._board.tell(self.stage.fingerprint, values, beat=True)


def local_checkpoint(checkpoint: Checkpoint) -> tuple[str, Kept | None]:
    """Local folder of a model that is no artifact, and what keeps it here; None: it stays by itself.

    Raises:
        UserError: it cannot be had, or is not what the plan saw.
    """
    if checkpoint.path is not None:
        storage = Storage(checkpoint.path)
        if storage.local:
            return storage.root, None
        kept = keep("models", _key(storage, checkpoint.digest), partial(_bring, storage, checkpoint.digest))
        return str(kept.path), kept
    if checkpoint.hub is None:
        raise UserError("a checkpoint names neither a hub id nor a path", fix="give `hub` or `path`")
    return _from_hub(checkpoint.hub, checkpoint.revision), None


def _key(storage: Storage, digest: str | None) -> str:
    """Names the content: by the plan's digest, or by what a listing says."""
    if digest is None:
        digest = "".join(f"{entry.name} {entry.size} {entry.tag}\n" for entry in storage.list(recursive=True))
    return sha256(f"{storage.uri}\n{digest}".encode()).hexdigest()[:32]


def _bring(storage: Storage, digest: str | None, target: Path) -> None:
    storage.mirror(target)
    if digest is None:
        return
    digests = Digests()
    if digests.folder(str(target), where=storage.uri) != digest:
        fix = "run the grid again: it is planned anew with what is there now"
        raise UserError("the model's files have changed since they were planned with", where=storage.uri, fix=fix)


def _from_hub(repository: str, revision: str | None) -> str:
    """A hub model's folder in the hub client's own cache: safetensors and what belongs to them, where it has those."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from cft_ray.fetch.hub import model_files

    def bring() -> str:
        if constants.HF_HUB_OFFLINE:
            return snapshot_download(repository, revision=revision)
        try:
            names = HfApi().list_repo_files(repository, revision=revision)
        except Exception as error:
            if transient(error):
                with contextlib.suppress(LocalEntryNotFoundError):  # a machine that has it needs no hub
                    return snapshot_download(repository, revision=revision, local_files_only=True)
            raise
        return snapshot_download(repository, revision=revision, allow_patterns=[glob.escape(name) for name in model_files(names)])

    return from_hub(f"{repository}@{revision or 'main'}", bring)
