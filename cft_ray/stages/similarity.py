"""The `similarity` stage: DES of two data sets with its uncertainty, and by language.

Reads `left` and `right`, two `embed` artifacts of one embedding model. Writes ``tables/similarity.parquet``.
"""

from typing import Any, cast

import pyarrow.parquet as pq

from cft_ray.embedding import store
from cft_ray.embedding.des import rows, sides
from cft_ray.errors import UserError
from cft_ray.metrics.schemas import table_of
from cft_ray.plan.specs import SimilaritySpec
from cft_ray.stages import remote
from cft_ray.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Compare and write.

    Returns:
        ``left``, ``right``: what the tables call the data sets; ``des``, ``des_low``, ``des_high``; ``text`` and ``embedder``.

    Raises:
        UserError: the two were embedded in different ways, or one of them has no direction.
    """
    left, right = (context.summary(role) for role in ("left", "right"))
    for key in ("embedder", "text", "dimension"):
        if left[key] != right[key]:
            what = f"the data sets were embedded in different ways: {key} {left[key]} and {right[key]}"
            raise UserError(what, where=context.stage.label, fix="embed both with the same model and text")
    found = remote.call(_compare, context)
    values = {row["measure"]: row["value"] for row in found if row["language"] is None}
    if "des" not in values:
        what = "the mean embedding of a data set is zero, so it has no direction"
        raise UserError(what, where=context.stage.label, fix="look at its texts, or use another embedding model")
    tables = context.output / "tables"
    tables.mkdir()
    pq.write_table(table_of("similarity", found), tables / "similarity.parquet")
    names = {"left": left["data"], "right": right["data"], "text": left["text"], "embedder": left["embedder"]}
    return names | {name: values.get(name) for name in ("des", "des_low", "des_high")}


def _compare(context: StageContext) -> list[dict[str, Any]]:
    spec = cast(SimilaritySpec, context.stage.spec)
    left, right = (
        sides(store.read(context.input(role)), spec.resamples, (spec.seed, number))
        for number, role in enumerate(("left", "right"))
    )
    return rows(left, right, (context.summary("left")["data"], context.summary("right")["data"]))
