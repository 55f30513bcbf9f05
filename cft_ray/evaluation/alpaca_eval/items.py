"""The instructions and their reference answers: from files that the grid names, or from the hub."""

from dataclasses import dataclass
from pathlib import Path

from cft_ray.data.readers import Wanted, read_file
from cft_ray.errors import UserError
from cft_ray.evaluation.items import local_files
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.plan.items import SCORED
from cft_ray.plan.specs import ItemsSource
from cft_ray.storage.errors import Unavailable
from cft_ray.storage.hub import from_hub

CONTROL = "length_control"
"""Beside the items, in `evaluation.data`: the file that the length-controlled win rate is regularised with."""
_LANGUAGE = "en"


@dataclass(frozen=True)
class Item:
    """One instruction.

    Args:
        number: its place in the benchmark, from 0; it names the item.
        instruction: what is asked.
        reference: the answer that the model's is compared with.
    """

    number: int
    instruction: str
    reference: str


@dataclass(frozen=True)
class Items:
    """What a model is asked.

    Args:
        items: in their order.
        control: the file that the length-controlled win rate is regularised with; None: it cannot be had.
        revisions: hub data set -> commit, where they came from the hub.
    """

    items: list[Item]
    control: Path | None
    revisions: dict[str, str]


def read_items(source: ItemsSource | None, limit: int | None) -> Items:
    """The benchmark's items, and what belongs to them.

    Args:
        source: the grid's files, or the hub's commit; None: the hub's newest.
        limit: so many, from the first; None: all.

    Raises:
        UserError: items cannot be had, or lack a column or a value.
    """
    revisions: dict[str, str] = {}
    declared = BENCHMARKS["alpaca_eval"].items
    assert declared is not None
    if source is not None and source.files:
        files = local_files(source, (_LANGUAGE,), where="benchmark alpaca_eval")[_LANGUAGE]
        controls = files.pop(CONTROL, [])
        paths, control = [path for split in files.values() for path in split], controls[0] if controls else None
    else:
        revision = source.revision if source is not None else None
        # Plain files: what `datasets` would load is a script, which it no longer runs.
        paths = [_from_hub(declared.files[SCORED], revision)]
        control = _from_hub_if_there(declared.files[CONTROL], revision)
        revisions = {declared.hub: Path(paths[0]).parent.name}  # the cache has a folder a commit
    columns = declared.columns
    rows = [row for path in paths for table in read_file(path, Wanted(tuple(columns))) for row in table.to_pylist()]
    items = [Item(number, *(row[column] for column in columns)) for number, row in enumerate(rows[:limit])]
    for item in items:
        if not item.instruction or item.reference is None:
            raise UserError(
                f"row {item.number} has no {'reference answer' if item.instruction else 'instruction'}",
                where=", ".join(paths),
                fix="a file with all items of the benchmark",
            )
    if not items:
        raise UserError("there is no item", where=", ".join(paths), fix="a file with all items of the benchmark")
    return Items(items, Path(control) if control is not None else None, revisions)


def _from_hub(name: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    declared = BENCHMARKS["alpaca_eval"].items
    assert declared is not None
    where = f"benchmark alpaca_eval, {declared.hub}/{name}@{revision or 'main'}"
    return from_hub(
        where,
        lambda: hf_hub_download(declared.hub, name, repo_type="dataset", revision=revision),
        instead="evaluation.data.alpaca_eval",
    )


def _from_hub_if_there(name: str, revision: str | None) -> str | None:
    try:
        return _from_hub(name, revision)
    except Unavailable:
        raise
    except UserError:
        return None
