"""What a stage is given while it runs, and what it owes. Implemented by `cft_ray.execute`; stages only see this."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cft_ray.grid.loggers import Logger
from cft_ray.plan.stage import Stage


class StageContext(Protocol):
    """The world of one running stage.

    A stage module has one function ``run(context) -> dict``: it fills ``context.output`` and returns a small JSON
    summary, which becomes ``outputs`` in the artifact's manifest. Rows for the tables are left in
    ``output/tables/{table}.parquet``; the runner sends them to the reporting actor once the artifact exists, so the
    tables can be rebuilt from the artifacts.
    """

    stage: Stage
    output: Path
    """Empty local folder; its content becomes the artifact."""
    scratch: Path
    """Local folder of this fingerprint that survives attempts on this machine (partial results, caches)."""
    checkpoints: str
    """Folder or URI `{storage}/checkpoints/{fingerprint}` for mid-run state; removed when the artifact exists."""
    attempt: int
    """1 for the first run of this fingerprint, and so on; kept over processes."""
    host: str | None
    """Name of the actor that keeps the stage's model for the next one; None: a task does the work."""
    loggers: tuple[Logger, ...]
    """What the grid's `loggers` ask for (see `cft_ray.training.loggers`); not identity."""

    def input(self, role: str) -> Path:
        """Local folder of the artifact of that role; verified."""
        ...

    def summary(self, role: str) -> dict[str, Any]:
        """``outputs`` of the manifest of the artifact of that role."""
        ...

    def model(self, role: str) -> str:
        """Local Hugging Face folder of a model role: the artifact's ``model/``, or ``spec.checkpoints[role]``."""
        ...

    def prove(self) -> None:
        """Return if this attempt still is the one that works on the stage; to be called before mid-run state is written.

        Raises:
            LeaseLost: another process has taken over.
            StorageError: that cannot be found out.
        """
        ...

    def report(self, table: str, rows: Sequence[dict[str, Any]], sequence: int) -> None:
        """Send rows to the tables now (live `steps`); returns when they are durable. ``sequence``: of the first row."""
        ...

    def progress(self, **values: Any) -> None:
        """Live display: any of done, total, unit, loss, tokens_per_second, note. Cheap; may be dropped."""
        ...
