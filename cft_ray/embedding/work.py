"""Embedding the blocks of a data set: in this process, or under Ray by a pool of actors that grows with the work.

A block travels as its number and comes back as a table, in no order. The pool is Ray Data's: its actors are outside of any
placement group (they would wait for room in one that holds nothing), and what they are fed is so small that it lies in
the driver, so that no further task needs a CPU.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray

from cft_ray.embedding.blocks import Blocks, blocks_of, read_block, text_of
from cft_ray.embedding.model import Embedder
from cft_ray.errors import UserError
from cft_ray.grid.settings import EmbeddingSettings
from cft_ray.machine import devices_for
from cft_ray.plan.stage import Resources

PROBLEM = "problem"
"""column of a table that says why there is no other: a `UserError` as JSON"""
Locate = Callable[[], tuple[Path, str | None]]
"""Called where the work is done: the folders of the data set and of the embedding model (None: the lexical embedder)."""
IN_FLIGHT = 2
"""blocks that an actor is given at a time: the next one is there when it has done one"""


def embedded(settings: EmbeddingSettings, resources: Resources, locate: Locate, numbers: Sequence[int]) -> Iterator[pa.Table]:
    """Embed blocks.

    Args:
        settings: how.
        resources: ``workers`` actors at most, each with ``cpus`` CPUs and ``gpus`` GPUs.
        locate: see `Locate`.
        numbers: of the blocks.

    Yields:
        A table for one or several blocks, with the columns of `Block.__call__`.

    Raises:
        UserError: no embedding model; vectors that are not finite.
    """
    if not numbers:
        return
    given = (settings, max(1, int(resources.cpus)), locate)
    if not ray.is_initialized():
        work = Block(*given)
        for number in numbers:
            yield work.block(number)
        return
    data = ray.data.DataContext.get_current()
    data.enable_progress_bars = False
    data.print_on_execution_start = False
    data.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=resources.workers, max_tasks_in_flight_per_actor=IN_FLIGHT)
    # A table of its own for each: Ray Data deals out tables, not rows.
    asked = ray.data.from_arrow([pa.table({"block": [number]}) for number in numbers])
    done = asked.map_batches(
        Block,
        fn_constructor_args=given,
        batch_size=1,  # Ray Data wants one to be named where there are GPUs
        batch_format="pyarrow",
        compute=pool,
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        runtime_env={"env_vars": devices_for(resources.gpus)},
    )
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        table = cast(pa.Table, batch)
        if PROBLEM in table.column_names:
            raise UserError(*json.loads(table[PROBLEM][0].as_py()))
        yield table


class Block:
    """What an actor of the pool is: a loaded model, and the data set on this machine.

    Args:
        settings: how texts become vectors.
        threads: of torch, on a CPU.
        locate: see `Locate`.
    """

    def __init__(self, settings: EmbeddingSettings, threads: int, locate: Locate) -> None:
        self.settings = settings
        self._threads, self._locate = threads, locate

    # Made by the first block, not when the actor is: what goes wrong there would look as if its process had died.

    @cached_property
    def folders(self) -> tuple[Path, str | None]:
        """As `Locate` says."""
        return self._locate()

    @cached_property
    def embedder(self) -> Embedder:
        """The loaded model."""
        return Embedder(self.folders[1], max_length=self.settings.max_length, threads=self._threads)

    @cached_property
    def blocks(self) -> Blocks:
        """How the data set is cut."""
        return blocks_of(self.folders[0], self.settings)

    def __call__(self, asked: pa.Table) -> pa.Table:
        """Embed the blocks in the column ``block``.

        Returns:
            A row for each row with text: ``block``, ``id``, ``language``, ``vector`` (float32 list of fixed length), and
            the block's ``empty`` and ``truncated`` texts, the same in all its rows (a block without any text has one row
            without vector). Or the one column `PROBLEM`: Ray Data wraps what is raised beyond recognition.
        """
        try:
            return self._blocks_of(asked)
        except UserError as error:
            return pa.table({PROBLEM: [json.dumps([error.what, error.where, error.fix])]})

    def _blocks_of(self, asked: pa.Table) -> pa.Table:
        return pa.concat_tables([self.block(int(number)) for number in asked["block"].to_pylist()], promote_options="permissive")

    def block(self, number: int) -> pa.Table:
        """Embed one block."""
        rows = read_block(self.folders[0], self.blocks.places(number))
        texts = np.array([text_of(row, self.settings.text) for row in rows.to_pylist()], dtype=object)
        there = np.flatnonzero([bool(text) for text in texts])
        counts: dict[str, Any] = {"block": number, "empty": len(texts) - len(there), "truncated": 0}
        if not len(there):
            return _table(counts, pa.array([None], pa.string()), pa.array([None], pa.string()), None)
        found = self.embedder.encode(texts[there].tolist(), self.settings.batch_size)
        kept = rows.take(pa.array(there))
        counts["truncated"] = found.truncated
        return _table(counts, kept["id"].combine_chunks(), kept["language"].combine_chunks(), found.vectors)


def _table(counts: dict[str, Any], ids: pa.Array, languages: pa.Array, vectors: np.ndarray | None) -> pa.Table:
    columns = {name: pa.repeat(pa.scalar(value, pa.int64()), len(ids)) for name, value in counts.items()}
    vector = pa.nulls(len(ids)) if vectors is None else pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    return pa.table({**columns, "id": ids, "language": languages, "vector": vector})
