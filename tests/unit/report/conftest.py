"""A planted grid, gathered."""

from collections.abc import Callable
from pathlib import Path

import pytest
from insightgrid import GRID, Shape, plant

import cft_ray
from cft_ray.report.tables import GridTables, gather


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., GridTables]:
    """Plant a grid and gather it: ``planted(Shape(…), without={"insight:des"})``."""

    def make(shape: Shape | None = None, without: set[str] | None = None) -> GridTables:
        folder = tmp_path / f"storage-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        plant(folder, shape or Shape(), frozenset(without or ()))
        return gather(cft_ray.open(folder), GRID)

    return make
