"""`StageContext` as it is while a plan runs: artifacts from the store, rows to the reporting actor."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from cft_ray.artifacts.lease import Fence
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import UserError
from cft_ray.execute.progress import Board
from cft_ray.execute.work import Work
from cft_ray.machine import machine_folder
from cft_ray.metrics.reporter import Reporter
from cft_ray.plan.specs import Checkpoint
from cft_ray.plan.stage import Stage
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
        self.scratch = machine_folder("scratch", sha256(work.storage.encode()).hexdigest()[:12], work.stage.fingerprint)
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.checkpoints = f"{work.storage}/checkpoints/{work.stage.fingerprint}"
        self.attempt = attempt
        self.loggers = work.loggers
        self.host = work.host
        self._work, self._fence, self._reporter, self._board = work, fence, reporter, board
        self._store = ArtifactStore(Storage(work.storage))

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
        return _local_checkpoint(getattr(self.stage.spec, "checkpoints", {})[role])

    def prove(self) -> None:
        """Return if this attempt still is the one that works on the stage (`cft_ray.artifacts.lease`)."""
        self._fence.prove()

    def report(self, table: str, rows: Sequence[dict[str, Any]], sequence: int) -> None:
        """Send rows to the tables now; returns when they are durable."""
        self._reporter.append(table, list(rows), fingerprint=self.stage.fingerprint, attempt=self.attempt, sequence=sequence)

    def progress(self, **values: Any) -> None:
        """Values for the live display; cheap, may be dropped."""
        self._board.tell(self.stage.fingerprint, values)


def _local_checkpoint(checkpoint: Checkpoint) -> str:
    if checkpoint.path is not None:
        storage = Storage(checkpoint.path)
        if storage.local:
            return storage.root
        target = machine_folder("models", sha256(storage.uri.encode()).hexdigest()[:12], checkpoint.digest or "any")
        _download_once(storage, target)
        return str(target)
    if checkpoint.hub is None:
        raise UserError("a checkpoint names neither a hub id nor a path", fix="give `hub` or `path`")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    where = f"{checkpoint.hub}@{checkpoint.revision or 'main'}"
    try:
        return snapshot_download(checkpoint.hub, revision=checkpoint.revision)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the model cannot be downloaded: {reason}", where=where, fix="check the id, access and HF_TOKEN"
        ) from error


def _download_once(storage: Storage, target: Path) -> None:
    """A remote model folder to this machine; the marker, written last, says that it is whole."""
    marker = target / ".complete"
    if marker.exists():
        return
    for entry in storage.list(recursive=True):
        storage.download(target / entry.name, entry.name)
    marker.touch()
