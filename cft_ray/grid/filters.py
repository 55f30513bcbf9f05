"""A grid's `include` and `exclude`: which cells they keep, and whether each of them says anything at all."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from cft_ray.errors import UserError
from cft_ray.grid.problems import nearest
from cft_ray.grid.schema import FILTERS, Grid
from cft_ray.grid.sections import Filter


class Filters:
    """The items of both lists, and which of them have matched a cell so far.

    Args:
        grid: checked.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.used: set[tuple[str, int]] = set()

    def keep(self, values: Mapping[str, str], settings: Mapping[str, Any], seed: int) -> bool:
        """Whether a cell is one of the grid's."""
        included, excluded = (self._any(section, values, settings, seed) for section in FILTERS)
        return (included or not self.grid.include) and not excluded

    def _any(self, section: str, values: Mapping[str, str], settings: Mapping[str, Any], seed: int) -> bool:
        matched = False
        for index, item in enumerate(getattr(self.grid, section)):
            if _matches(item, values, settings, seed):
                self.used.add((section, index))
                matched = True
        return matched

    def refuse_useless(self, swept: Mapping[str, Sequence[Any]]) -> None:
        """Refuse an item that matches no cell: what it was meant for is run, or is not run, all the same.

        Raises:
            UserError: naming the item; ``swept``: setting -> its values, for the remedy.
        """
        for section in FILTERS:
            for index, item in enumerate(getattr(self.grid, section)):
                if (section, index) in self.used:
                    continue
                path: tuple[str | int, ...] = (section, index)
                what, fix = "no cell is like this", "mend it, or take it out"
                for setting, value in item.settings.items():
                    here = (*path, "settings", setting)
                    if setting not in swept:
                        what, fix, path = f"{setting!r} is not swept", nearest(setting, list(swept)), here
                    elif not any(one in swept[setting] for one in (value if isinstance(value, list) else [value])):
                        values = ", ".join(map(str, swept[setting]))
                        what, fix, path = f"{setting} is never {value!r}", f"one of {values}", here
                raise UserError(what, where=self.grid.source.where(path), fix=fix)


def _matches(item: Filter, values: Mapping[str, str], settings: Mapping[str, Any], seed: int) -> bool:
    for field, value in values.items():
        wanted = getattr(item, field)
        if wanted is not None and not any(fnmatchcase(value, str(pattern)) for pattern in wanted):
            return False
    if item.seed is not None and not any(fnmatchcase(str(seed), str(pattern)) for pattern in item.seed):
        return False
    return all(
        path in settings and settings[path] in (wanted if isinstance(wanted, list) else [wanted])
        for path, wanted in item.settings.items()
    )
