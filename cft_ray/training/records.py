"""What is known of each optimizer step, for trainings of millions of steps: a few records as they come, the rest as columns."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cft_ray.metrics.schemas import table_of

TABLE = "steps"
AT_ONCE = 4096
"""records that become columns together: about a hundred bytes each, where a record as it comes takes a kilobyte"""


class StepRecords:
    """The records of a training so far, in order.

    Args:
        table: those of before, with the columns of the table ``steps``.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        self._columns: list[pa.Table] = [] if table is None else [table_of(TABLE, table)]
        self._new: list[dict[str, Any]] = []

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a step's record.

        Raises:
            UnfitRows: it has columns that the table ``steps`` does not have, or not those that it needs (said with up to
                `AT_ONCE` records' delay).
        """
        self._new.append(dict(record))
        if len(self._new) >= AT_ONCE:
            self._columns.append(table_of(TABLE, self._new))
            self._new = []

    def table(self) -> pa.Table:
        """All of them, with the columns of the table ``steps``."""
        return pa.concat_tables([*self._columns, table_of(TABLE, self._new)])
