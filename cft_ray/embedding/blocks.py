"""The rows of a data set that are embedded, block by block, so that no more than a block's texts are in memory.

A block is a run of the chosen rows; it is read where it is embedded, from the Parquet row groups that hold it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cft_ray.data.rows import COLUMNS, FILE
from cft_ray.errors import UserError
from cft_ray.grid.settings import EmbeddingSettings
from cft_ray.strategies.selection import select


@dataclass(frozen=True)
class Blocks:
    """Which rows of a ``rows.parquet`` belong to which block.

    Args:
        available: rows of the data set.
        chosen: [rows] their places, ascending; None: all.
        size: rows of a block.
    """

    available: int
    chosen: np.ndarray | None
    size: int

    @property
    def rows(self) -> int:
        """Rows that are embedded."""
        return self.available if self.chosen is None else len(self.chosen)

    def __len__(self) -> int:
        return (self.rows + self.size - 1) // self.size

    def places(self, number: int) -> np.ndarray:
        """Places in the data set of a block's rows, ascending."""
        start, stop = number * self.size, min((number + 1) * self.size, self.rows)
        return np.arange(start, stop) if self.chosen is None else self.chosen[start:stop]


def blocks_of(folder: Path, settings: EmbeddingSettings) -> Blocks:
    """Draw the sample.

    Args:
        folder: of a `dataset` or `replay` artifact.
        settings: ``sample`` rows are drawn with ``seed``; all are taken where there are no more.

    Raises:
        UserError: the data set is empty, or no readable Parquet.
    """
    file = folder / FILE
    try:
        available = pq.read_metadata(file).num_rows
    except FileNotFoundError as error:
        raise UserError("there is no such file", where=str(file), fix="give the folder of a dataset artifact") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"not a readable Parquet file ({error})", where=str(file), fix="write it again") from error
    if available == 0:
        raise UserError("the data set is empty: there is nothing to embed", where=str(file), fix="give it at least one row")
    if settings.sample is None or settings.sample >= available:
        return Blocks(available, None, settings.block_rows)
    chosen = np.sort(select(available, settings.sample, settings.seed)[0])
    return Blocks(available, chosen, settings.block_rows)


def read_block(folder: Path, places: np.ndarray) -> pa.Table:
    """The rows at ascending ``places``, canonical columns only; row groups without any are not read.

    Raises:
        UserError: a canonical column is missing.
    """
    found: list[pa.Table] = []
    with pq.ParquetFile(folder / FILE) as source:
        wanted = [name for name in COLUMNS if name != "turns"]
        if absent := [name for name in wanted if name not in source.schema_arrow.names]:
            raise UserError(f"no column {absent[0]!r}", where=str(folder / FILE), fix=f"canonical rows have {wanted}")
        first = 0
        for group in range(source.num_row_groups):
            stop = first + source.metadata.row_group(group).num_rows
            inside = places[(places >= first) & (places < stop)] - first
            if len(inside):
                found.append(source.read_row_group(group, columns=wanted).take(pa.array(inside)))
            first = stop
    return pa.concat_tables(found)


def text_of(row: Mapping[str, str], text: str) -> str:
    """What is embedded of a canonical row; ``text`` as in `EmbeddingSettings`. Parts are joined by line ends."""
    parts = {
        "instruction": ("instruction", "input"),
        "instruction_and_answer": ("instruction", "input", "output"),
        "answer": ("output",),
    }[text]
    return "\n".join(part for name in parts if (part := row[name].strip()))
