"""What an `embed` artifact holds, and how it is written from blocks and read again without holding it in memory.

``embeddings/part-*.parquet``: ``id``, ``language``, ``vector``, in the order of the data set. ``means.parquet``: for all rows
(`language` null) and each language ``n``, ``mean`` and its ``norm``.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cft_ray.errors import UserError

PARTS = "embeddings"
MEANS = "means.parquet"
PART_ROWS = 2**16
"""least rows of a part, save for the last"""


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of fixed-length lists as [rows, dimension] float32."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    return np.asarray(array.flatten(), dtype=np.float32).reshape(len(array), -1)


def write(output: Path, blocks: Iterable[pa.Table]) -> dict[str, int]:
    """Write the artifact.

    Args:
        output: its folder.
        blocks: tables with ``id``, ``language``, ``vector``, in order, none empty.

    Returns:
        Language -> rows.

    Raises:
        UserError: there is no row.
    """
    (output / PARTS).mkdir()
    sums: dict[str | None, np.ndarray] = {}
    counts: dict[str | None, int] = {}
    writer: pq.ParquetWriter | None = None
    part = rows = 0
    try:
        for block in blocks:
            table = block.select(["id", "language", "vector"])
            if writer is None:  # vectors neither repeat nor shrink
                file = output / PARTS / f"part-{part:05d}.parquet"
                writer = pq.ParquetWriter(file, table.schema, compression="none", use_dictionary=False)
            writer.write_table(table)
            _add(table, sums, counts)
            rows += table.num_rows
            if rows >= PART_ROWS:
                writer.close()
                writer, part, rows = None, part + 1, 0
    finally:
        if writer is not None:
            writer.close()
    if not counts:
        raise UserError("no row has any text to embed", where="embed", fix="embed another `text`, or look at the columns")
    _write_means(output / MEANS, sums, counts)
    return {language: count for language, count in counts.items() if language is not None}


def read(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The vectors of an `embed` artifact.

    Yields:
        [rows] languages and [rows, dimension] float32, a few thousand rows at a time.
    """
    for file in sorted((folder / PARTS).glob("*.parquet")):
        with pq.ParquetFile(file) as source:
            for batch in source.iter_batches(4096, columns=["language", "vector"]):
                table = pa.Table.from_batches([batch])
                yield np.asarray(table["language"].to_pylist(), dtype=object), vectors_of(table["vector"])


def _add(table: pa.Table, sums: dict[str | None, np.ndarray], counts: dict[str | None, int]) -> None:
    vectors = vectors_of(table["vector"]).astype(np.float64)
    languages = np.asarray(table["language"].to_pylist(), dtype=object)
    for language in (None, *dict.fromkeys(languages.tolist())):
        mine = vectors if language is None else vectors[languages == language]
        sums[language] = sums.get(language, 0.0) + mine.sum(axis=0)
        counts[language] = counts.get(language, 0) + len(mine)


def _write_means(file: Path, sums: dict[str | None, np.ndarray], counts: dict[str | None, int]) -> None:
    means = {language: total / counts[language] for language, total in sums.items()}
    table = pa.table(
        {
            "language": pa.array(list(means), pa.string()),
            "n": pa.array([counts[language] for language in means], pa.int64()),
            "mean": pa.array([mean.tolist() for mean in means.values()], pa.list_(pa.float64())),
            "norm": pa.array([float(np.linalg.norm(mean)) for mean in means.values()], pa.float64()),
        }
    )
    pq.write_table(table, file)
