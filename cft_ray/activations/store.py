"""Activations on disk: one array that is filled and read a piece at a time, and a table that says what its rows are.

``activations.npy`` is [blocks, prompts, hidden size] float32, ``prompts.parquet`` has a row a prompt in the same order. Both
appear only when they are whole.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cft_ray.activations.measure import Part
from cft_ray.activations.prompts import Prompts
from cft_ray.activations.statistics import covariance
from cft_ray.errors import UserError

ARRAY, TABLE = "activations.npy", "prompts.parquet"
_SCHEMA = pa.schema([("id", pa.string()), ("language", pa.string()), ("tokens", pa.int64()), ("truncated", pa.bool_())])


@dataclass(frozen=True)
class Activations:
    """Of one model.

    Args:
        means: [blocks, prompts, hidden size] float32, mapped from the file.
        prompts: columns ``id``, ``language``, ``tokens``, ``truncated``.
    """

    means: np.ndarray
    prompts: pa.Table

    @classmethod
    def read(cls, folder: Path) -> "Activations":
        """Map what `Writer` wrote.

        Raises:
            UserError: there is nothing of the kind.
        """
        try:
            means = np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False)
            return cls(means, pq.read_table(folder / TABLE))
        except (OSError, EOFError, ValueError, pa.ArrowInvalid) as error:  # of an empty file numpy says EOFError
            raise UserError(
                f"holds no activations ({error})", where=str(folder), fix="run the activations stage again"
            ) from error

    def layers(self, model: str, prompts: str) -> Iterator[dict[str, Any]]:
        """Rows of the table `layers`: each block, over all prompts and over those of each language.

        Args:
            model: what the model is called in the table.
            prompts: what their data set is called.
        """
        languages = np.asarray(self.prompts["language"].to_pylist())
        everything: list[str | None] = [None, *dict.fromkeys(languages.tolist())]
        for block, activations in enumerate(self.means):
            for language in everything:
                rows = activations if language is None else activations[languages == language]
                norms = covariance(rows) if len(rows) > 1 else None
                yield {
                    "model": model,
                    "prompts": prompts,
                    "language": language,
                    "n": len(rows),
                    "layer": block,
                    "mean": rows.mean(0, dtype=np.float64).tolist(),
                    "variance": norms.trace if norms else None,
                    "frobenius": norms.frobenius if norms else None,
                    "spectral": norms.spectral if norms else None,
                }


class Writer:
    """Puts parts where they belong, in whatever order they come."""

    def __init__(self, prompts: Prompts, folder: Path) -> None:
        """``folder``: must exist; gets `ARRAY` and `TABLE`."""
        self._prompts, self._folder = prompts, folder
        self._unfinished = folder / f".{ARRAY}.{os.getpid()}"
        self._array: Any = None

    def add(self, part: Part) -> None:
        """Write a part's activations."""
        blocks, _, hidden = part.means.shape
        if self._array is None:
            shape = (blocks, len(self._prompts), hidden)
            self._array = np.lib.format.open_memmap(self._unfinished, mode="w+", dtype=np.float32, shape=shape)
        self._array[:, part.prompts] = part.means

    def close(self) -> Activations:
        """Finish once all parts are there."""
        assert self._array is not None
        self._array.flush()
        self._array = None
        lengths: Sequence[int] = [len(ids) for ids in self._prompts.tokens]
        columns = [self._prompts.ids, self._prompts.languages, lengths, self._prompts.truncated]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), self._folder / TABLE)
        self._unfinished.rename(self._folder / ARRAY)
        return Activations.read(self._folder)
