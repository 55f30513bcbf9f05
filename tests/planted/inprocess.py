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

    def append(self, table: str, rows: Any, *, fingerprint: str, attempt: int, sequence: int) -> None:
        if self.broken:
            raise UserError("the storage is full", where=self.storage.uri, fix="free space")
        body = table_of(table, rows)
        TableStore(self.storage, table).commit([Append(fingerprint, attempt, sequence, body)])

    def finish(self) -> None:
        for folder in self.storage.list("tables"):
            TableStore(self.storage, folder.name).compact()


class Told:
    """A board that keeps all that it is told."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def tell(self, fingerprint: str, values: dict[str, Any], *, beat: bool = False) -> None:
        self.values.append(values)
