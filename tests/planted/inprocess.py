"""What a stage's attempt is given where no Ray runs: a reporter and a board in this process."""

from typing import Any

from cft_ray.errors import UserError
from cft_ray.metrics.schemas import table_of
from cft_ray.metrics.store import Append, TableStore
from cft_ray.storage.root import Storage


class Direct:
    """A reporter in this process."""

    def __init__(self, storage: Storage, broken: bool = False) -> None:
        self.storage, self.broken = storage, broken
        self._tables: dict[str, TableStore] = {}

    def append(self, table: str, rows: Any, *, fingerprint: str, attempt: int, sequence: int) -> None:
        if self.broken:
            raise UserError("the storage is full", where=self.storage.uri, fix="free space")
        if table not in self._tables:
            self._tables[table] = TableStore(self.storage, table)
        self._tables[table].commit([Append(fingerprint, attempt, sequence, table_of(table, rows))])

    def finish(self) -> None:
        for table in self._tables.values():
            table.compact()


class Told:
    """A board that keeps all that it is told."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def tell(self, fingerprint: str, values: dict[str, Any], *, beat: bool = False) -> None:
        self.values.append(values)
