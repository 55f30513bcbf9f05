"""`init`: what it writes, and when it does not."""

import pytest

from cft_ray import starter
from cft_ray.errors import UserError
from cft_ray.grid.schema import load_grid
from cft_ray.plan.build import build


def test_the_starter_grid_is_a_grid(tmp_path):
    grid_file, cluster_file = starter.write(tmp_path / "new")
    plan = build(load_grid(grid_file))
    assert {cell.strategy for cell in plan.cells} == {"none", "GR_10"}
    assert cluster_file.exists() and {path.name for path in grid_file.parent.iterdir()} == {"grid.yaml", "cluster.yaml"}


@pytest.mark.parametrize("name", ["grid.yaml", "cluster.yaml"])
def test_a_file_that_is_there_stops_it(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError):
        starter.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        starter.write(tmp_path / "file" / "below")
