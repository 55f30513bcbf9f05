"""The `embed` stage: sentence embeddings of a data set's rows, or of a sample of them.

Reads `data` (a `dataset` or `replay` artifact) and the model `embedder`, if the spec names one. Blocks of rows are embedded by
a pool of actors (`cft_ray.embedding.work`); each lies in ``scratch`` as soon as it is done, so that a stage that is killed goes
on with the others. Writes what `cft_ray.embedding.store` says.
"""

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cft_ray.data.accounts import KEY, RowAccount
from cft_ray.embedding import store
from cft_ray.embedding.blocks import blocks_of
from cft_ray.embedding.work import embedded
from cft_ray.plan.specs import EmbedSpec
from cft_ray.stages import sides
from cft_ray.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Embed and write.

    Returns:
        ``data``: what the tables call the data set; ``embedder``; ``text``; ``rows`` embedded, of ``rows_available``;
        ``rows_by_language``; ``empty`` rows, which have no text and are left out; ``truncated`` texts; ``dimension``;
        ``note``, where there were fewer rows than the sample asks for.

    Raises:
        UserError: an empty data set, none with text, no embedding model, vectors that are not finite.
    """
    spec = cast(EmbedSpec, context.stage.spec)
    data = context.input("data")
    blocks = blocks_of(data, spec.settings)
    note = None
    if spec.settings.sample is not None and blocks.available < spec.settings.sample:
        note = f"{blocks.available} rows are fewer than the sample of {spec.settings.sample}: all are taken"
    folder = context.scratch / f"blocks-{blocks.size}"
    folder.mkdir(exist_ok=True)
    finished = _finished(folder)
    missing = [number for number in range(len(blocks)) if number not in finished]
    done = sum(len(blocks.places(number)) for number in finished)
    context.progress(done=done, total=blocks.rows, unit="texts", note=note or "the model is loaded")
    for table in embedded(spec.settings, context.stage.resources, partial(_locate, context), missing):
        for number in table["block"].unique().to_pylist():
            _keep(folder, number, table.filter(pc.field("block") == number))
            done += len(blocks.places(number))
        context.progress(done=done, total=blocks.rows, unit="texts", note=note or "")
    counts: Counter[str] = Counter()
    languages = store.write(context.output, _in_order(folder, len(blocks), counts))
    dimension = pq.read_schema(next((context.output / store.PARTS).iterdir())).field("vector").type.list_size
    account = RowAccount(
        came=blocks.available,
        used=sum(languages.values()),
        left_out={"empty": counts["empty"]} if counts["empty"] else {},
        set_aside={"not_in_sample": blocks.available - blocks.rows} if blocks.available > blocks.rows else {},
        noted={"truncated": counts["truncated"]} if counts["truncated"] else {},
    )
    return {
        "data": sides.name(context.stage, "data"),
        "embedder": sides.name(context.stage, "embedder") if spec.checkpoints else "lexical",
        "text": spec.settings.text,
        "rows": sum(languages.values()),
        "rows_available": blocks.available,
        "rows_by_language": languages,
        "empty": counts["empty"],
        "truncated": counts["truncated"],
        "dimension": dimension,
        KEY: account.model_dump(),
        **({"note": note} if note else {}),
    }


def _locate(context: StageContext) -> tuple[Path, str | None]:
    named = cast(EmbedSpec, context.stage.spec).checkpoints
    return context.input("data"), context.model("embedder") if "embedder" in named else None


def _keep(folder: Path, number: int, table: pa.Table) -> None:
    unfinished = folder / f".{number}.{os.getpid()}"
    pq.write_table(table, unfinished)
    unfinished.rename(folder / f"{number:07d}.parquet")


def _finished(folder: Path) -> set[int]:
    return {int(file.stem) for file in folder.glob("[0-9]*.parquet")}


def _in_order(folder: Path, blocks: int, counts: Counter[str]) -> Iterator[pa.Table]:
    for number in range(blocks):
        table = pq.read_table(folder / f"{number:07d}.parquet")
        counts["empty"] += table["empty"][0].as_py()
        counts["truncated"] += table["truncated"][0].as_py()
        if table["id"].null_count == 0:
            yield table
