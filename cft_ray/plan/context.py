"""Whether a benchmark's answers fit the context of the models that are asked, as far as a plan can know it."""

from typing import TYPE_CHECKING

from cft_ray.errors import UserError
from cft_ray.grid.choices import ChosenBenchmark, chosen_benchmarks
from cft_ray.grid.schema import Grid
from cft_ray.plan.limits import positions

if TYPE_CHECKING:
    from cft_ray.artifacts.fetched import Fetched


def check_answers(grid: Grid, fetched: "Fetched | None") -> None:
    """Refuse answers that the grid wants longer than the whole context.

    Args:
        grid: checked.
        fetched: its copies of hub models, if it has such.

    Raises:
        UserError: names the setting.
    """
    for index, chosen in enumerate(chosen_benchmarks(grid)):
        wanted = chosen.generation.max_new_tokens
        path = _path(grid, index)
        if wanted is None or path is None:
            continue
        length, reader = _context(grid, chosen, fetched)
        if wanted >= length:
            raise UserError(
                f"answers of {chosen.name} may have {wanted} tokens, and {reader} {length} for question and answer together",
                where=grid.source.where(path),
                fix=f"fewer than {length}, or none: then the task says",
            )


def notes(grid: Grid, fetched: "Fetched | None") -> list[str]:
    """Benchmarks whose own answers are longer than a context, a line each: they get what the question leaves."""
    found = []
    for index, chosen in enumerate(chosen_benchmarks(grid)):
        wanted = chosen.generation.max_new_tokens
        length, reader = _context(grid, chosen, fetched)
        if wanted is not None and _path(grid, index) is None and wanted >= length:
            found.append(
                f"{chosen.name} allows answers of {wanted} tokens, and {reader} {length} for question and answer together: "
                "they get what the question leaves"
            )
    return found


def _path(grid: Grid, index: int) -> tuple[str | int, ...] | None:
    """Where the grid says how long a benchmark's answers may be; None: the benchmark does."""
    if "max_new_tokens" in grid.evaluation.benchmarks[index].generation:
        return "evaluation", "benchmarks", index, "generation", "max_new_tokens"
    return ("evaluation", "generation", "max_new_tokens") if "max_new_tokens" in grid.evaluation.generation else None


def _context(grid: Grid, chosen: ChosenBenchmark, fetched: "Fetched | None") -> tuple[int, str]:
    """Tokens of the smallest context that the benchmark is asked in, and what has no more."""
    found = [(chosen.generation.max_length, "evaluation.generation.max_length allows")]
    for model, checkpoints in grid.models.items():
        known = [length for each in checkpoints.values() if (length := positions(each, fetched)) is not None]
        found += [(length, f"{model} reads") for length in known]
    return min(found)
