"""Rows per second through the reporting actor, against a bare pyarrow write of the same rows in one process.

Writers are Ray actors in processes of their own; each sends rows of the `steps` table as dicts and waits for every
acknowledgement. The bare write makes the same batches of dicts into tables and one Parquet file, flushed to disk once at
its end. The clock starts when all writers run and have sent a first row.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from record import record

from cft_ray.metrics.reporter import Reporter, start_reporter
from cft_ray.metrics.schemas import SCHEMAS

TARGET = 50_000


def rows(first: int, count: int) -> list[dict[str, Any]]:
    """Rows as a training sends them."""
    fixed = {"epoch": 0.5, "lr": 1e-6, "grad_norm": 1.5, "tokens": 16_000, "target_tokens": 9_000, "samples": 16, "seconds": 0.5}
    speed = {"tokens_per_s": 32_000.0, "mfu": 0.4, "peak_memory": 2**36}
    return [{"step": step, "loss": 2.0 + step * 1e-6, **fixed, **speed} for step in range(first, first + count)]


class Writer:
    """One sender; its rows have its own fingerprint."""

    def __init__(self, reporter: Reporter, number: int) -> None:
        self.reporter, self.fingerprint = reporter, f"{number:064x}"
        reporter.append("steps", rows(0, 1), fingerprint=self.fingerprint, attempt=1, sequence=0)

    def write(self, appends: int, size: int) -> float:
        """Returns the longest wait for an acknowledgement, in seconds."""
        longest = 0.0
        for number in range(appends):
            first = 1 + number * size
            start = time.perf_counter()
            self.reporter.append("steps", rows(first, size), fingerprint=self.fingerprint, attempt=1, sequence=first)
            longest = max(longest, time.perf_counter() - start)
        return longest


def through_actor(folder: Path, writers: int, appends: int, size: int) -> dict[str, float]:
    reporter = start_reporter(str(folder))
    actors: list[Any] = [ray.remote(Writer).options(num_cpus=0).remote(reporter, number) for number in range(writers)]
    ray.get([actor.write.remote(0, size) for actor in actors])
    start = time.perf_counter()
    waits = ray.get([actor.write.remote(appends, size) for actor in actors])
    seconds = time.perf_counter() - start
    files = sorted((folder / "tables" / "steps").glob("*.parquet"))
    keys = pl.scan_parquet(files).select("fingerprint", "attempt", "sequence", "step").collect()  # before any clean-up
    assert keys.height == keys.n_unique() == writers * (appends * size + 1), keys.height
    assert (keys["sequence"] == keys["step"]).all()
    figures = {"seconds": seconds, "rows_per_second": writers * appends * size / seconds}
    return figures | {"longest_wait_seconds": max(waits), "files": len(files), "rows_on_disk": keys.height}


def bare(folder: Path, writers: int, appends: int, size: int) -> dict[str, float]:
    schema = pa.schema([field.with_nullable(True) for field in SCHEMAS["steps"]])
    start = time.perf_counter()
    with (folder / "bare.parquet").open("wb") as sink:
        with pq.ParquetWriter(sink, schema, compression="zstd") as parquet:
            for number in range(writers):
                key = {"fingerprint": f"{number:064x}", "attempt": 1}
                for append in range(appends):
                    batch = [{**key, "sequence": row["step"], **row} for row in rows(1 + append * size, size)]
                    parquet.write_table(pa.Table.from_pylist(batch, schema=schema))
        sink.flush()
        os.fsync(sink.fileno())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rows_per_second": writers * appends * size / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--appends", type=int, default=400, help="per writer")
    parser.add_argument("--rows", type=int, default=500, help="per append")
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    folder = Path(tempfile.mkdtemp(prefix="reporter-"))
    try:
        shape = arguments.writers, arguments.appends, arguments.rows
        actor, peer = through_actor(folder, *shape), bare(folder, *shape)
    finally:
        ray.shutdown()
        shutil.rmtree(folder)
    ratios = {
        "ratio_to_bare_pyarrow": actor["rows_per_second"] / peer["rows_per_second"],
        "ratio_to_target": actor["rows_per_second"] / TARGET,
    }
    figures = {"writers": shape[0], "rows_per_append": shape[2], "actor": actor, "bare_pyarrow": peer, **ratios}
    print(record("reporter", " ".join(["python", "benchmarks/reporter.py", *sys.argv[1:]]), figures).read_text())


if __name__ == "__main__":
    main()
