"""The `dataset` stage: rows from a source, as canonical rows.

The source is streamed: no more than a few thousand rows are in memory, whatever its size. A sample of `rows` per
language takes those with the smallest hashes of (seed, language, place among the language's rows): nothing about the
rows' content or the number of workers decides it, and a smaller sample is part of a larger one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cft_ray.data.accounts import KEY, Tally
from cft_ray.data.preflight import refuse_unusable
from cft_ray.data.readers import BATCH
from cft_ray.data.rows import FILE, write_rows
from cft_ray.data.sources import read
from cft_ray.errors import UserError
from cft_ray.plan.digest import Digests
from cft_ray.plan.specs import DatasetSpec
from cft_ray.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Write ``rows.parquet``.

    Returns:
        ``rows``; ``rows_by_language``; ``rows_read``: usable rows before the sample; ``account``: what became of all that the
        source has.

    Raises:
        UserError: the source cannot be read, has changed since it was planned, has no usable row in a language or loses more
            rows than the grid allows, or two rows have one id.
    """
    spec = context.stage.spec
    assert isinstance(spec, DatasetSpec)
    where = spec.files or spec.hub or f"toy data set {spec.toy}"
    tally = Tally()
    read_rows: Counter[str] = Counter()
    whole = context.scratch / "all.parquet" if spec.rows is not None and spec.toy is None else context.output / FILE

    if spec.files is not None and spec.digest is not None:
        _refuse_changed(spec.files, spec.digest, spec.languages)

    def counted(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for batch in batches:
            yield batch
            _count(read_rows, batch)
            context.progress(done=read_rows.total(), unit="rows")

    write_rows(whole, counted(read(spec, tally)))
    name = context.stage.label or where
    refuse_unusable(spec, read_rows, tally.account(read_rows.total()), name, where)
    _refuse_twins(whole, where)
    kept = read_rows
    if whole != context.output / FILE:
        kept = _sample(spec, whole, context.output / FILE, read_rows)
        whole.unlink()
        tally.set_aside["not_in_sample"] += read_rows.total() - kept.total()
    return {
        "rows": kept.total(),
        "rows_by_language": {language: kept[language] for language in spec.languages},
        "rows_read": read_rows.total(),
        KEY: tally.account(kept.total()).model_dump(),
    }


def priorities(seed: int, language: str, count: int) -> np.ndarray:
    """Hashes that order a language's rows for sampling.

    Args:
        seed: of the data set.
        language: so that languages draw independently.
        count: of rows.

    Returns:
        ``count`` unsigned 64-bit integers: SplitMix64 (Steele, Lea, Flood 2014) of the row's place plus a SHA-256 of
        seed and language. The first are the same for every count.
    """
    start = int.from_bytes(sha256(f"sample/{seed}/{language}".encode()).digest()[:8])
    with np.errstate(over="ignore"):
        mixed = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _count(counter: Counter[str], batch: pa.Table) -> None:
    for item in batch.column("language").value_counts().to_pylist():
        counter[item["values"]] += item["counts"]


def _sample(spec: DatasetSpec, whole: Path, target: Path, available: Counter[str]) -> Counter[str]:
    """Copy the sampled rows of ``whole`` to ``target``, in their order; what was kept of each language."""
    assert spec.rows is not None
    chosen: dict[str, np.ndarray] = {}
    for language, count in available.items():
        mask = np.zeros(count, dtype=bool)
        mask[np.argsort(priorities(spec.seed, language, count), kind="stable")[: spec.rows]] = True
        chosen[language] = mask
    kept: Counter[str] = Counter()

    def selected() -> Iterator[pa.Table]:
        seen: Counter[str] = Counter()
        with pq.ParquetFile(whole) as source:
            for batch in source.iter_batches(BATCH):
                languages = np.asarray(batch.column("language").to_pylist(), dtype=object)
                mask = np.zeros(batch.num_rows, dtype=bool)
                for language in dict.fromkeys(languages):
                    places = languages == language
                    first = seen[language]
                    seen[language] += int(places.sum())
                    mask[places] = chosen[language][first : seen[language]]
                part = pa.Table.from_batches([batch]).filter(pa.array(mask))
                _count(kept, part)
                if part.num_rows:
                    yield part

    write_rows(target, selected())
    return kept


def _refuse_changed(files: str, digest: str, languages: Sequence[str]) -> None:
    """The artifact is named by what the plan saw in the files: it must not be made from anything else."""
    digests = Digests()
    if digests.files(files, languages, where=files) != digest:
        raise UserError("the files have changed since the grid was planned", where=files, fix="run the same command again")
    digests.save()


def _refuse_twins(file: Path, where: str) -> None:
    ids = pq.read_table(file, columns=["id"]).column("id")
    if len(ids.unique()) != len(ids):
        twice = next(item["values"] for item in ids.value_counts().to_pylist() if item["counts"] > 1)
        raise UserError(
            f"id {twice!r} occurs more than once", where=where, fix="leave `id` out of the columns: ids are then made"
        )
