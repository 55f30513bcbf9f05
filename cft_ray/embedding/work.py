"""Embedding the blocks of a data set: in this process, or under Ray by a pool of actors that grows with the work.

A block travels as its number and comes back as a table, in no order. The pool is Ray Data's: its actors are outside of any
placement group (they would wait for room in one that holds nothing), and what they are fed is so small that it lies in
the driver, so that no further task needs a CPU.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray

from cft_ray.embedding.blocks import Blocks, blocks_of, read_block, text_of
from cft_ray.embedding.model import Embedder
from cft_ray.plan.specs import EmbedSpec
from cft_ray.stages.context import StageContext

IN_FLIGHT = 2
"""blocks that an actor is given at a time: the next one is there when it has done one"""


def embedded(context: StageContext, numbers: Sequence[int]) -> Iterator[pa.Table]:
    """Embed blocks.

    Args:
        context: of an `embed` stage.
        numbers: of the blocks.

    Yields:
        A table for each block, with the columns of `Block.__call__`.

    Raises:
        UserError: no embedding model; vectors that are not finite.
    """
    if not numbers:
        return
    if not ray.is_initialized():
        work = Block(context)
        for number in numbers:
            yield work(pa.table({"block": [number]}))
        return
    data = ray.data.DataContext.get_current()
    data.enable_progress_bars = False
    data.print_on_execution_start = False
    data.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    needs = context.stage.resources
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=needs.workers, max_tasks_in_flight_per_actor=IN_FLIGHT)
    # A table of its own for each: Ray Data deals out tables, not rows.
    asked = ray.data.from_arrow([pa.table({"block": [number]}) for number in numbers])
    done = asked.map_batches(
        Block,
        fn_constructor_args=(context,),
        batch_size=None,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=needs.cpus,
        num_gpus=needs.gpus,
        scheduling_strategy="DEFAULT",
    )
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield cast(pa.Table, batch)


class Block:
    """What an actor of the pool is: a loaded model, and the data set on this machine.

    Args:
        context: of an `embed` stage.
    """

    def __init__(self, context: StageContext) -> None:
        self.spec = cast(EmbedSpec, context.stage.spec)
        folder = context.model("embedder") if "embedder" in self.spec.checkpoints else None
        threads = max(1, int(context.stage.resources.cpus))
        self.embedder = Embedder(folder, max_length=self.spec.settings.max_length, threads=threads)
        self.data = context.input("data")
        self.blocks: Blocks = blocks_of(self.data, self.spec.settings)

    def __call__(self, asked: pa.Table) -> pa.Table:
        """Embed the blocks in the column ``block``.

        Returns:
            A row for each row with text: ``block``, ``id``, ``language``, ``vector`` (float32 list of fixed length), and
            the block's ``empty`` and ``truncated`` texts, the same in all its rows (a block without any text has one row
            without vector).
        """
        return pa.concat_tables([self._one(int(number)) for number in asked["block"].to_pylist()], promote_options="permissive")

    def _one(self, number: int) -> pa.Table:
        rows = read_block(self.data, self.blocks.places(number))
        texts = np.array([text_of(row, self.spec.settings.text) for row in rows.to_pylist()], dtype=object)
        there = np.flatnonzero([bool(text) for text in texts])
        counts: dict[str, Any] = {"block": number, "empty": len(texts) - len(there), "truncated": 0}
        if not len(there):
            return _table(counts, pa.array([None], pa.string()), pa.array([None], pa.string()), None)
        found = self.embedder.encode(texts[there].tolist(), self.spec.settings.batch_size)
        kept = rows.take(pa.array(there))
        counts["truncated"] = found.truncated
        return _table(counts, kept["id"].combine_chunks(), kept["language"].combine_chunks(), found.vectors)


def _table(counts: dict[str, Any], ids: pa.Array, languages: pa.Array, vectors: np.ndarray | None) -> pa.Table:
    columns = {name: pa.repeat(pa.scalar(value, pa.int64()), len(ids)) for name, value in counts.items()}
    vector = pa.nulls(len(ids)) if vectors is None else pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    return pa.table({**columns, "id": ids, "language": languages, "vector": vector})
