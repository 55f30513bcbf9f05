"""What a grid takes from the internet: read off its plan, so that what no cell needs is not fetched."""

from dataclasses import dataclass

from cft_ray.artifacts.fetched import Part
from cft_ray.grid.choices import chosen_benchmarks
from cft_ray.grid.schema import Grid
from cft_ray.lacks import named_checkpoints
from cft_ray.plan.build import build
from cft_ray.plan.items import items_parts
from cft_ray.plan.sources import dataset_part
from cft_ray.plan.specs import DatasetSpec


@dataclass(frozen=True)
class Needs:
    """What is to be had.

    Args:
        parts: of hub repositories; models first.
        punkt: whether nltk's sentence tokenizer is needed.
        unknown: benchmarks that declare no hub items and are given no files: what they load is their tasks' affair.
    """

    parts: tuple[Part, ...]
    punkt: bool
    unknown: tuple[str, ...]


def needs(grid: Grid) -> Needs:
    """What a grid takes from the internet, as if nothing had been fetched.

    Raises:
        UserError: the grid cannot be planned.
    """
    grid = grid.model_copy(update={"fetched": None})
    parts: dict[Part, None] = {}
    for stage in build(grid).stages.values():
        if stage.skip is not None:
            continue
        if isinstance(stage.spec, DatasetSpec) and stage.spec.hub is not None:
            parts[dataset_part(stage.spec)] = None
        for checkpoint in named_checkpoints(stage.spec):
            if checkpoint.hub is not None and checkpoint.path is None:
                parts[Part(checkpoint.hub, "model", checkpoint.revision)] = None
    unknown, punkt = [], False
    for chosen in chosen_benchmarks(grid):
        if not grid.evaluation.nltk_data:
            punkt |= any("ifeval" in task for task in chosen.benchmark.tasks.values())
        if chosen.benchmark.data is not None or chosen.of(grid.evaluation.data) is not None:
            continue
        revision = chosen.of(grid.evaluation.revisions)
        found = items_parts(chosen, None if revision is None else grid.evaluation.revisions[revision])
        if not found:
            unknown.append(chosen.name)
        parts |= dict.fromkeys(found.values())
    ordered = sorted(parts, key=lambda part: (part.kind != "model", part.repository))
    return Needs(tuple(ordered), punkt, tuple(unknown))
