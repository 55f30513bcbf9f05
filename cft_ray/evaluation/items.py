"""Items of a benchmark read from files that stand in for the hub.

The harness' tasks stay as they are: each is read through a YAML that includes it and changes one thing, where its items
come from (`cft_ray.evaluation.overlay`). `load` is what such a YAML names. Files of an object store are copied to this
machine first; what is read is checked to be what the plan saw.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from cft_ray.data.languages import filled, names_language
from cft_ray.data.paths import from_wildcard, matching
from cft_ray.data.readers import require_columns
from cft_ray.data.records import ending, records
from cft_ray.errors import UserError
from cft_ray.plan.digest import Digests
from cft_ray.plan.items import items_digest
from cft_ray.plan.specs import ItemsSource
from cft_ray.storage.cache import Kept, keep
from cft_ray.storage.files import Found, placed
from cft_ray.storage.location import is_uri

_KEPT: dict[str, Kept] = {}
"""of items that the harness may read as long as the process lives"""
LINES = (".jsonl", ".ndjson", ".json")


def local_files(source: ItemsSource, languages: Sequence[str], *, where: str) -> dict[str, dict[str, list[str]]]:
    """The files of each language and split on this machine: language -> split -> paths.

    Raises:
        UserError: a file is missing or cannot be fetched, or is no longer what was planned with.
    """
    patterns = {split: _fetched(pattern, source, split, languages) for split, pattern in source.files.items()}
    digests = Digests()
    found = items_digest(digests, patterns, languages, where=where)
    digests.save()
    if source.digest is not None and found != source.digest:
        raise UserError(
            f"the items' files have changed since they were planned with: {', '.join(source.files.values())}",
            where=where,
            fix="run the grid again: it is planned anew with what is there now",
        )
    return {
        language: {split: [file.path for file in matching(filled(pattern, language))] for split, pattern in patterns.items()}
        for language in languages
    }


def load(
    files: Mapping[str, Sequence[str]], splits: Sequence[str], only: Mapping[str, str] | None = None, shape: str = "", **_: Any
) -> dict[str, Dataset]:
    """The splits of one task; called by the harness with the `dataset_kwargs` of an overlay.

    Args:
        files: split -> local Parquet or JSON-lines files.
        splits: all that the task names; those without files are empty (a zero-shot task never reads them).
        only: column -> the one value whose rows are this task's.
        shape: name in `SHAPES` of what the files are mended by.

    Raises:
        UserError: a file cannot be read, has no such rows, or lacks a column.
    """
    loaded: dict[str, Dataset] = {}
    for split, paths in files.items():
        tables = [_read(path, Path(path).stat().st_mtime_ns) for path in paths]
        table = pa.concat_tables(tables, promote_options="permissive")
        for column, value in (only or {}).items():
            table = table.filter(pc.field(column) == value)
        if not table.num_rows:
            which = "".join(f" with {column} {value!r}" for column, value in (only or {}).items())
            raise UserError(f"there is no item{which}", where=", ".join(paths), fix="files with all items of the benchmark")
        loaded[split] = Dataset(SHAPES[shape](table, paths[0]) if shape else table)
    empty = next(iter(loaded.values())).select([])
    return {split: loaded.get(split, empty) for split in splits} | loaded


def check_columns(files: Mapping[str, Mapping[str, Sequence[str]]], columns: Sequence[str]) -> None:
    """Refuse files that lack a column that the benchmark's tasks read.

    Raises:
        UserError: names file and column.
    """
    for splits in files.values():
        for path in (path for paths in splits.values() for path in paths):
            require_columns(_read(path, Path(path).stat().st_mtime_ns).column_names, columns, path)


@lru_cache(maxsize=16)
def _read(path: str, changed: int) -> pa.Table:
    """A file's rows; kept, because the 57 tasks of one benchmark may read one file. ``changed``: its time, for the cache."""
    if ending(path) == ".parquet":
        try:
            with pq.ParquetFile(path) as file:
                table = file.read()
                table.validate(full=True)
                return table
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot be read ({error})", where=path, fix="fetch or write the file again") from error
    if ending(path) not in LINES:
        raise UserError(
            "items are not read from such a file", where=path, fix=f"Parquet, or an object a line ({', '.join(LINES)})"
        )
    rows = [row for _, row in records(path)]
    # pyarrow's own `from_pylist` has the columns of the first row alone.
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise UserError(f"the items are not alike ({error})", where=path, fix="give each column values of one type") from error


def _whole_context(table: pa.Table, where: str) -> pa.Table:
    """HellaSwag without its two halves of the context: the whole one (`ctx`) stands for the first.

    The task joins `ctx_a` and the capitalised `ctx_b`, so the second half's first letter, and any capitals inside it,
    read as the file has them.
    """
    halves = ("ctx_a", "ctx_b")
    if all(name in table.column_names and not table[name].null_count for name in halves):
        return table
    kept = table.drop_columns([name for name in halves if name in table.column_names])
    if "ctx" not in kept.column_names or kept["ctx"].null_count:
        raise UserError("an item has neither `ctx_a` and `ctx_b` nor `ctx`", where=where, fix="a file with its contexts")
    return kept.append_column("ctx_a", kept["ctx"]).append_column("ctx_b", pa.array([""] * kept.num_rows))


SHAPES: dict[str, Callable[[pa.Table, str], pa.Table]] = {"hellaswag": _whole_context}
"""Stock task -> what makes its items of files that circulate in another shape than the hub's."""


def _fetched(pattern: str, source: ItemsSource, split: str, languages: Sequence[str]) -> str:
    """A pattern of local files; those of an object store are copied to this machine, once."""
    if not is_uri(pattern):
        return pattern
    end, by_language = from_wildcard(pattern), names_language(pattern)
    found = {language: matching(filled(pattern, language)) for language in (languages if by_language else ("",))}
    states = [(language, file.path, file.size, file.changed) for language, files in found.items() for file in files]
    key = sha256(repr((pattern, split, source.digest, source.revision, states)).encode()).hexdigest()[:32]

    def fill(folder: Path) -> None:
        for language, files in found.items():
            for file in files:
                _copy(file, folder.joinpath(language, *file.path.split("/")[-len(end.split("/")) :]))

    kept = keep("items", key, fill)
    _KEPT[key] = kept
    return f"{kept.path}/{{language}}/{end}" if by_language else f"{kept.path}/{end}"


def _copy(file: Found, target: Path) -> None:
    storage, parts = placed(file.location)
    storage.download(target, *parts)
    if target.stat().st_size != file.size:
        raise UserError(f"{target.stat().st_size} of {file.size} bytes came", where=file.location, fix="run it again")
