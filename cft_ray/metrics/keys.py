"""Which rows a table already holds: the keys (fingerprint, attempt, sequence) as ranges of sequence numbers.

A stage numbers its rows 0, 1, 2 …, so millions of keys are a few ranges. Pure: numpy and pyarrow.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cft_ray.metrics.schemas import KEY


class KeyRanges:
    """A set of keys, as disjoint and non-adjacent half-open ranges per (fingerprint, attempt), in order."""

    def __init__(self) -> None:
        self._starts: dict[tuple[str, int], list[int]] = defaultdict(list)
        self._stops: dict[tuple[str, int], list[int]] = defaultdict(list)

    def add(self, fingerprint: str, attempt: int, start: int, stop: int) -> None:
        """Put in the sequence numbers from ``start`` up to, not including, ``stop``."""
        if start >= stop:
            return
        starts, stops = self._starts[fingerprint, attempt], self._stops[fingerprint, attempt]
        first, last = bisect_left(stops, start), bisect_right(starts, stop)  # the ranges that touch the new one
        if first < last:
            start, stop = min(start, starts[first]), max(stop, stops[last - 1])
        starts[first:last], stops[first:last] = [start], [stop]

    def missing(self, fingerprint: str, attempt: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of the range that are not in the set, in order."""
        starts, stops = self._starts.get((fingerprint, attempt), []), self._stops.get((fingerprint, attempt), [])
        index = bisect_right(stops, start)
        while start < stop:
            if index == len(starts) or starts[index] >= stop:
                yield start, stop
                return
            if start < starts[index]:
                yield start, starts[index]
            start = stops[index]
            index += 1

    def add_rows(self, table: pa.Table) -> None:
        """Put in the keys of a table's rows, in any order, doubled or not."""
        for fingerprint, attempt, start, stop in _runs(table):
            self.add(fingerprint, attempt, start, stop)

    def update(self, other: "KeyRanges") -> None:
        """Put in everything of another set."""
        for key, starts in other._starts.items():
            for start, stop in zip(starts, other._stops[key], strict=True):
                self.add(*key, start, stop)

    def __len__(self) -> int:
        return sum(sum(self._stops[key]) - sum(starts) for key, starts in self._starts.items())


def merged(tables: list[pa.Table]) -> pa.Table:
    """The rows of all tables sorted by key, each key once; a column that some of them lack is null there."""
    table = pa.concat_tables(tables, promote_options="default").sort_by([(column, "ascending") for column in KEY])
    return table.filter(pa.array(_differs_from_previous(table, list(KEY)))) if table.num_rows else table


def _runs(table: pa.Table) -> Iterator[tuple[str, int, int, int]]:
    """(fingerprint, attempt, start, stop) of each unbroken run of sequence numbers, keys sorted."""
    if not table.num_rows:
        return
    table = table.select(KEY).sort_by([(column, "ascending") for column in KEY])
    sequence = table["sequence"].to_numpy()
    new = _differs_from_previous(table, ["fingerprint", "attempt"])
    new[1:] |= np.diff(sequence) > 1
    firsts = np.flatnonzero(new)
    lasts = np.append(firsts[1:], len(sequence)) - 1
    heads = table.take(pa.array(firsts))
    yield from zip(
        heads["fingerprint"].to_pylist(),
        heads["attempt"].to_pylist(),
        sequence[firsts].tolist(),
        (sequence[lasts] + 1).tolist(),
        strict=True,
    )


def _differs_from_previous(table: pa.Table, columns: list[str]) -> np.ndarray:
    """Per row, whether any of the columns differs from the row before; True for the first row."""
    new = np.zeros(table.num_rows, dtype=bool)
    new[0] = True
    for column in columns:
        values = table[column].combine_chunks()
        new[1:] |= pc.call_function("not_equal", [values.slice(1), values.slice(0, len(values) - 1)]).to_numpy(
            zero_copy_only=False
        )
    return new
