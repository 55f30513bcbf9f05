"""The `replay_quality` stage: what generated replay is like, beside the original answers to the same prompts.

Reads `replay`, `english` and the Phase 1 `model` (artifact or named checkpoint). Writes ``rows.parquet``, one row an answer,
and ``tables/replay.parquet``. A task with the stage's CPUs and GPU, because the perplexity needs the model.
"""

from typing import Any, cast

import pyarrow.parquet as pq

from cft_ray.data.accounts import KEY, RowAccount
from cft_ray.data.rows import FILE, read_rows
from cft_ray.metrics.schemas import table_of
from cft_ray.plan.specs import ReplayQualitySpec
from cft_ray.replay_quality.measure import GENERATED, Quality, measure_quality
from cft_ray.stages import remote, sides
from cft_ray.stages.context import StageContext

SHOWN = ("perplexity", "self_bleu", "rep_4", "empty", "truncated", "language_expected")


def run(context: StageContext) -> dict[str, Any]:
    """Measure.

    Returns:
        ``rows`` of the replay artifact, and of its answers those of `SHOWN` that could be taken.

    Raises:
        UserError: see `cft_ray.replay_quality.measure.measure_quality`; a model that cannot be loaded.
    """
    context.progress(note="the model is loaded")
    found = remote.call(_measure, context)
    name = sides.name(context.stage, "replay")
    tables = context.output / "tables"
    tables.mkdir()
    pq.write_table(found.rows, context.output / "rows.parquet")
    pq.write_table(table_of("replay", [{"replay": name, **row} for row in found.measures]), tables / "replay.parquet")
    whole = {row["measure"]: row["value"] for row in found.measures if row["side"] == GENERATED and row["language"] is None}
    generated = sum(side == GENERATED for side in found.rows["side"].to_pylist())
    account = RowAccount(came=int(context.summary("replay")["rows"]), used=generated)
    return {"rows": generated, KEY: account.model_dump(), **{measure: whole[measure] for measure in SHOWN if measure in whole}}


def _measure(context: StageContext) -> Quality:
    """In the worker: inputs are fetched where they are read."""
    from cft_ray.inference.model import load

    spec = cast(ReplayQualitySpec, context.stage.spec)
    with pq.ParquetFile(context.input("replay") / FILE) as source:
        replay = source.read()
    return measure_quality(
        replay,
        read_rows(context.input("english")),
        load(context.model("model")),
        spec.template,
        max_length=spec.max_length,
        seed=spec.seed,
        progress=lambda done, total: context.progress(done=done, total=total, unit="tokens", note=""),
    )
