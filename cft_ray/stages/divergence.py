"""The `divergence` stage: KL(left‖right) of two models' next-token distributions on the rows of a data set, per token.

Reads `data`, `left` and `right` (artifacts or named checkpoints). Writes ``rows.parquet``, the sums for each row, and
``tables/similarity.parquet``. A task with the stage's CPUs and GPU, which holds both models.
"""

from typing import Any, cast

import pyarrow.parquet as pq

from cft_ray.data.accounts import KEY
from cft_ray.data.rows import read_rows
from cft_ray.divergence.measure import Divergence, measure_divergence
from cft_ray.metrics.schemas import table_of
from cft_ray.plan.specs import DivergenceSpec
from cft_ray.stages import remote, sides
from cft_ray.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Compare the two models.

    Returns:
        ``data``: what the tables call the data set; ``rows`` used, those ``too_long``, ``tokens`` compared, ``kl_prompt``,
        ``kl_answer``, ``kl_all``.

    Raises:
        UserError: see `cft_ray.divergence.measure.measure_divergence`.
    """
    context.progress(note="the models are loaded")
    found = remote.call(_measure, context)
    left, right, data = (sides.name(context.stage, role) for role in ("left", "right", "data"))
    tables = context.output / "tables"
    tables.mkdir()
    pq.write_table(found.rows, context.output / "rows.parquet")
    pq.write_table(table_of("similarity", found.similarity(left, right)), tables / "similarity.parquet")
    return {"data": data, **found.summary, KEY: found.account.model_dump()}


def _measure(context: StageContext) -> Divergence:
    """In the worker: inputs are fetched where they are read."""
    spec = cast(DivergenceSpec, context.stage.spec)
    folder = context.input("data")
    return measure_divergence(
        context.model("left"),
        context.model("right"),
        read_rows(folder),
        spec.template,
        spec.settings,
        where=str(folder),
        progress=lambda done, total: context.progress(done=done, total=total, unit="tokens", note=""),
    )
