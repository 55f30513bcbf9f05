"""The `drift` stage: norms of the difference of two models, a tensor, a head, a layer and in all.

Reads `left` and `right` (artifacts or named checkpoints). Writes ``tensors.parquet``, ``heads.parquet`` (what LF_H2
chooses by) and ``tables/similarity.parquet``. Under Ray the reading is a task with the stage's resources, wherever that
finds room; its tables are small and come back to the driver.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cft_ray.drift.measure import Drift, measure_drift
from cft_ray.metrics.schemas import table_of
from cft_ray.stages import remote, sides
from cft_ray.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Compare the two models.

    Returns:
        ``tensors``, ``parameters``, ``rows_left_out``, ``mpd``, ``rms``, ``l2``, ``max_abs``.

    Raises:
        UserError: the models cannot be compared; see `cft_ray.drift.measure.measure_drift`.
    """
    drift = remote.call(compare, context)
    left, right = (sides.name(context.stage, role) for role in ("left", "right"))
    (context.output / "tables").mkdir()
    pq.write_table(drift.tensors, context.output / "tensors.parquet")
    pq.write_table(drift.heads, context.output / "heads.parquet")
    similarity = table_of("similarity", drift.similarity(left, right))
    pq.write_table(similarity, context.output / "tables" / "similarity.parquet")
    return drift.summary


def compare(context: StageContext) -> Drift:
    """The measurement itself, in this process, with a thread for each of the stage's CPUs."""
    return measure_drift(
        Path(context.model("left")),
        Path(context.model("right")),
        threads=max(1, int(context.stage.resources.cpus)),
        progress=lambda done, total: context.progress(done=done, total=total, unit="parameters"),
    )
