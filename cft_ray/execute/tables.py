"""Rows that the runner itself sends to the tables: cells, attempts of stages, and what lies in the artifacts.

The rows of an artifact go out under the attempt that made it, numbered as in its files, so sending them again changes
nothing, and the tables can be rebuilt from the artifacts (`send_missing`).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from cft_ray.artifacts.manifest import Manifest
from cft_ray.artifacts.sound import CorruptArtifact
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.metrics.cells import cell_rows, cells_key
from cft_ray.metrics.keys import KeyRanges
from cft_ray.metrics.reporter import Reporter
from cft_ray.metrics.schemas import KEY, SCHEMAS, UnfitRows
from cft_ray.metrics.store import read_files
from cft_ray.plan.stage import Plan
from cft_ray.storage.root import Storage

BATCH = 50_000
"""rows sent at a time"""
FAILED, DONE = 1, 2
"""Sequences of an attempt's rows in `stages` (0 would be its beginning). Done is the last word: an attempt whose artifact
stands did not fail, whatever was recorded of its process."""


def send_cells(reporter: Reporter, plan: Plan) -> None:
    """Which cell uses which stage."""
    reporter.append("cells", cell_rows(plan), **cells_key(plan))


def send_attempt(reporter: Reporter, fingerprint: str, attempt: int, row: dict[str, Any]) -> None:
    """The end of one attempt, as a row of `stages`."""
    sequence = DONE if row["status"] == "done" else FAILED
    reporter.append("stages", [row], fingerprint=fingerprint, attempt=attempt, sequence=sequence)


def attempt_row(manifest: Manifest, grid: str) -> dict[str, Any]:
    """The row of the attempt that made an artifact, from its manifest alone (where the run was cut off before it was sent)."""
    end = datetime.fromisoformat(manifest.created).astimezone(UTC)
    return {
        "grid": grid,
        "kind": manifest.kind,
        "label": manifest.label,
        "status": "done",
        "start": end - timedelta(seconds=manifest.seconds),
        "end": end,
        "seconds": manifest.seconds,
        "versions": json.dumps(manifest.versions),
        "outputs": json.dumps(manifest.outputs),
    }


def send_artifact(reporter: Reporter, store: ArtifactStore, manifest: Manifest) -> None:
    """The rows in ``tables/*.parquet`` of one artifact."""
    if not manifest.rows:
        return
    for table, path in store.fetch_tables(manifest).items():
        for sequence, batch in _batches(table, pq.ParquetFile(path)):
            reporter.append(table, batch, fingerprint=manifest.fingerprint, attempt=manifest.attempt, sequence=sequence)


def _batches(table: str, file: pq.ParquetFile) -> Iterator[tuple[int, pa.Table]]:
    """(number of the first row, rows); rows are numbered from 0, those of `steps` by their step."""
    sequence: int | None = None
    for batch in file.iter_batches(BATCH):
        if sequence is None:
            sequence = batch.column("step")[0].as_py() if table == "steps" and batch.num_rows else 0
        yield sequence, pa.Table.from_batches([batch])
        sequence += batch.num_rows


def send_missing(
    reporter: Reporter,
    store: ArtifactStore,
    manifests: Iterable[Manifest],
    grid: str,
    unusable: Callable[[Manifest, Exception], None] | None = None,
) -> int:
    """Send what the tables lack of these artifacts.

    Args:
        reporter: where to.
        store: where the artifacts lie.
        manifests: of which artifacts.
        grid: entered for attempts that have no row.
        unusable: told of an artifact whose rows fit no table or whose files are damaged, which is then passed over; None:
            such an artifact ends the sending.

    Returns:
        how many artifacts lacked something that was sent.

    Raises:
        UserError: the storage cannot be read or written to.
    """
    manifests = list(manifests)
    held = {table: _held(store.storage, table) for table in {"stages", *(table for made in manifests for table in made.rows)}}
    sent = 0
    for made in manifests:
        lacking = [table for table, rows in made.rows.items() if _lacks(held[table], made, rows)]
        try:
            if lacking:
                send_artifact(reporter, store, made)
        except (CorruptArtifact, pa.ArrowException, UnfitRows) as error:
            if unusable is None:
                raise
            unusable(made, error)
            continue
        ended = list(held["stages"].missing(made.fingerprint, made.attempt, DONE, DONE + 1))
        if ended:
            send_attempt(reporter, made.fingerprint, made.attempt, attempt_row(made, grid))
        sent += bool(lacking or ended)
    return sent


def _held(storage: Storage, table: str) -> KeyRanges:
    keys = KeyRanges()
    if table in SCHEMAS:
        for _, rows in read_files(storage, table, list(KEY)):
            keys.add_rows(rows)
    return keys


def _lacks(held: KeyRanges, made: Manifest, rows: int) -> bool:
    """Rows are numbered from 0 or from 1, so of the numbers 0 … rows exactly one may be absent."""
    missing = held.missing(made.fingerprint, made.attempt, 0, rows + 1)
    return sum(stop - start for start, stop in missing) > 1
