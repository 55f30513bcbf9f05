"""The reporting actor: the one writer of the tables, for every process of a Ray cluster.

A call of `Reporter.append` returns when its rows are durable. Calls that arrive while a file is being written wait
together and share the next one (group commit), so many small appends cost few files. The actor holds nothing that it
could not read back from the files: Ray starts it again after a crash, calls under way are sent again, and rows that
had reached the disk are known by their keys. The actor takes no CPU in Ray's books, so that it always finds a place.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cft_ray.errors import UserError
from cft_ray.metrics.schemas import table_of
from cft_ray.metrics.store import Append, TableStore
from cft_ray.storage.root import Storage

NAMESPACE = "cft-ray"
PATIENCE_SECONDS = 300.0
"""how long a caller tries to reach an actor that does not answer"""


@dataclass
class _Call:
    """One append that waits for its file."""

    append: Append
    done: bool = False
    error: BaseException | None = None


@dataclass
class _Lane:
    """One table within the actor: who waits, and whose turn it is to write."""

    store: TableStore | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: list[_Call] = field(default_factory=list)


class _ReporterActor:
    """Runs as a Ray actor; see `Reporter`."""

    def __init__(self, uri: str) -> None:
        self._storage = Storage(uri)
        self._lanes: dict[str, _Lane] = {}

    async def append(self, table: str, append: Append) -> None:
        lane = self._lanes.setdefault(table, _Lane())
        call = _Call(append)
        lane.waiting.append(call)
        async with lane.turn:
            if not call.done:  # nobody before us wrote it: write for all who wait now
                calls, lane.waiting = lane.waiting, []
                await asyncio.to_thread(self._commit, table, lane, calls)
        if call.error is not None:
            raise call.error

    async def finish(self) -> None:
        for table, lane in list(self._lanes.items()):
            async with lane.turn:
                await asyncio.to_thread(self._opened(table, lane).compact)

    def _opened(self, table: str, lane: _Lane) -> TableStore:
        if lane.store is None:
            lane.store = TableStore(self._storage, table)
        return lane.store

    def _commit(self, table: str, lane: _Lane, calls: list[_Call]) -> None:
        error: BaseException | None = None
        try:
            self._opened(table, lane).commit(call.append for call in calls)
        except BaseException as caught:  # noqa: BLE001 - a call that is not marked would pass for one whose rows are safe
            error = caught
            if not isinstance(caught, UserError):
                lane.store = None  # what it remembers of the files may not be so
        for call in calls:
            call.done, call.error = True, error
        if error is None:
            try:
                self._opened(table, lane).merge_levels()
            except (UserError, OSError, pa.ArrowException) as caught:  # the rows are safe; the next commit merges again
                lane.store = None
                logging.getLogger(__name__).warning("the table %s was not compacted: %s", table, caught)


class Reporter:
    """What processes hold to send rows; may be sent to any process of the Ray cluster. Made by `start_reporter`."""

    def __init__(self, uri: str, actor: Any) -> None:
        self._uri, self._actor = uri, actor

    def append(
        self, table: str, rows: Iterable[Mapping[str, Any]] | pa.Table, *, fingerprint: str, attempt: int, sequence: int
    ) -> None:
        """Add rows to a table; they are on the storage when this returns. Rows of one call land in one file, or none does.

        Args:
            table: a key of `cft_ray.metrics.schemas.SCHEMAS`.
            rows: without the key columns; see `table_of`.
            fingerprint: stage that the rows come from.
            attempt: its attempt.
            sequence: number of the first row; the others follow. A row whose (fingerprint, attempt, sequence) is there
                already is dropped, so sending again is harmless.

        Raises:
            UserError: rows that do not fit the table, or a storage that cannot be written to.
            ray.exceptions.RayActorError: the actor could not be reached or started again for `PATIENCE_SECONDS`.
        """
        body = table_of(table, rows)
        if body.num_rows:
            self._call("append", table, Append(fingerprint, attempt, sequence, body))

    def finish(self) -> None:
        """Compact the tables written in this run. Appending afterwards is allowed.

        Raises:
            UserError: the storage cannot be written to.
        """
        self._call("finish")

    def _call(self, method: str, *arguments: Any) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        pause = 0.1
        while True:
            try:
                ray.get(getattr(self._actor, method).remote(*arguments))
                return
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            except RayActorError:  # Ray gave up on it (its owner ended, its node was lost): another takes its place
                if time.monotonic() > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
                self._actor = _actor(self._uri)


def start_reporter(storage_uri: str) -> Reporter:
    """The reporting actor of a storage: the one that runs in this Ray cluster, or a new one on this node.

    Args:
        storage_uri: the grid's storage; a relative folder is taken from the working directory.

    Raises:
        UserError: a URI that cannot be understood.
    """
    uri = Storage(storage_uri).uri
    return Reporter(uri, _actor(uri))


def _actor(uri: str) -> Any:
    """The named actor. It lives as long as the job that made it; local storage wants it on that job's node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {
        "name": f"reporter-{hashlib.sha256(uri.encode()).hexdigest()[:16]}",
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "scheduling_strategy": here,
    }
    return ray.remote(_ReporterActor).options(**options).remote(uri)
