"""Files that hold a benchmark's items in place of the hub: from the grid's words to a spec that knows them by content.

A grid says ``evaluation.data: {xquad: "xquad/xquad.{language}.parquet", mmlu: mmlu}``: files, folders, URIs of either.
A folder stands for those of its files whose names begin with the split that is scored. Pure: planning reads the files'
bytes for their digest, and nothing of what is in them.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from cft_ray.errors import UserError
from cft_ray.grid.choices import ChosenBenchmark
from cft_ray.grid.schema import Grid
from cft_ray.plan.digest import Digests
from cft_ray.plan.specs import ItemsSource
from cft_ray.storage.location import is_uri, local_path

if TYPE_CHECKING:
    from cft_ray.artifacts.fetched import Fetched, Part

SCORED = "scored"
"""Stands for the split that is scored, whatever a benchmark calls it."""


def items_source(grid: Grid, digests: Digests, chosen: ChosenBenchmark, fetched: "Fetched | None" = None) -> ItemsSource | None:
    """Where a benchmark's items come from; None: from the hub, at no commit in particular.

    Args:
        grid: whose `evaluation` says so.
        digests: of files.
        chosen: the benchmark.
        fetched: copies of what is on the hub, where the grid has such.

    Raises:
        UserError: a file is missing; both files and a revision are given; files for items that the toy world makes; hub
            items that have not been fetched.
    """
    evaluation = grid.evaluation
    in_files, at_commit = chosen.of(evaluation.data), chosen.of(evaluation.revisions)
    if in_files is None:
        revision = None if at_commit is None else evaluation.revisions[at_commit]
        parts = items_parts(chosen, revision) if fetched is not None else {}
        if fetched is not None and parts:
            where = grid.source.where(("evaluation", "benchmarks", chosen.name))
            commits = {name: fetched.find(part, where=where).revision for name, part in parts.items()}
            places = {name: fetched.location(part, commits[name]) for name, part in parts.items()}
            return ItemsSource(revision=commits[SCORED], files=places)
        return None if revision is None else ItemsSource(revision=revision)
    path = ("evaluation", "data", in_files)
    where = grid.source.where(path)
    if at_commit is not None:
        raise UserError(
            f"{chosen.name} has files under `data` and a commit under `revisions`", where=where, fix="keep one of the two"
        )
    if chosen.benchmark.data is not None:
        raise UserError(f"the items of {chosen.name} are made, not read", where=where, fix="take it out")
    given = evaluation.data[in_files]
    languages = tuple(chosen.benchmark.tasks)
    split = chosen.benchmark.items.split if chosen.benchmark.items is not None else ""
    files = {
        name: _pattern(value, evaluation.data_folder, languages, split if name == SCORED else name)
        for name, value in ({SCORED: given} if isinstance(given, str) else given).items()
    }
    return ItemsSource(digest=items_digest(digests, files, languages, where=where), files=files)


def items_parts(chosen: ChosenBenchmark, revision: str | None) -> "dict[str, Part]":
    """What a benchmark's items are on the hub, for `cft-ray fetch` and what it left; empty where that is not declared."""
    from cft_ray.artifacts.fetched import Part  # loads pyarrow, which a plan without copies does not need

    items = chosen.benchmark.items
    if items is None:
        return {}
    languages = tuple(chosen.benchmark.tasks)
    if items.files:
        return {name: Part(items.hub, "dataset", revision, pattern=file) for name, file in items.files.items()}
    part = Part(items.hub, "dataset", revision, config=items.config, split=items.split, languages=languages, names=items.names)
    return {SCORED: part}


def items_digest(digests: Digests, files: Mapping[str, str], languages: Sequence[str], *, where: str) -> str:
    """SHA-256 over the splits and their files' names and contents.

    Args:
        digests: of files.
        files: split -> path or URI, as in `ItemsSource`.
        languages: for ``{language}``.
        where: for messages.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    digest = sha256()
    for split in sorted(files):
        digest.update(f"{split}\0{digests.files(files[split], languages, where=where)}\n".encode())
    return digest.hexdigest()


def located(path: str, folder: str | None = None) -> str:
    """A path of a grid as every process understands it: absolute, or a URI.

    Args:
        path: as the grid gives it.
        folder: folder or URI that a relative path starts from; none, and for ``./…``: the working directory.
    """
    if is_uri(path):
        return path
    if folder is not None and not path.startswith(("/", "~", "./", "../", "file://")):
        path = f"{folder.rstrip('/')}/{path}"
    return path if is_uri(path) else str(local_path(path))


def _pattern(given: str, folder: str | None, languages: Sequence[str], split: str) -> str:
    whole = located(given, folder)
    first = whole.replace("{language}", languages[0])
    if given.endswith("/") or (not is_uri(first) and local_path(first).is_dir()):
        return f"{whole.rstrip('/')}/{split}*"
    return whole
