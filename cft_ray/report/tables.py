"""The rows of one grid that figures are drawn from, tied to its cells.

A stage's rows know their stage alone; which cells they are about stands in the table `cells`, by role. Everything here
is read once, through `cft_ray.open`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from cft_ray.errors import UserError
from cft_ray.metrics.reading import CELL, Results

PLAIN = "none"
"""strategy whose cells stand for the pair itself; where a grid has none of that name, its first strategy"""
GET_INSIGHT = "run the grid with `cft-ray run GRID --with insight` (or give it an `insight:` section)"
"""how to get the rows that most figures need"""


class NothingToDraw(Exception):
    """A figure's rows are not there. The message says which; ``fix`` how to get them."""

    def __init__(self, what: str, fix: str = GET_INSIGHT) -> None:
        super().__init__(what)
        self.fix = fix


@dataclass(frozen=True)
class StageFacts:
    """What the table `stages` says of a finished stage."""

    kind: str
    label: str
    outputs: dict[str, Any]


@dataclass(frozen=True)
class GridTables:
    """One grid's rows.

    Args:
        name: of the grid.
        cells: one row per cell: `CELL` and ``pair``, in the plan's order.
        roles: ``cell``, ``role``, ``stage``.
        stages: fingerprint -> facts, of every stage that is done.
        similarity: the table's rows that come from this grid's stages.
        layers: the same of the table `layers`.
        summary: `Results.summary()` of the grid.
        results: `Results.results()` of the grid.
    """

    name: str
    cells: pl.DataFrame
    roles: pl.DataFrame
    stages: dict[str, StageFacts]
    similarity: pl.DataFrame
    layers: pl.DataFrame
    summary: pl.DataFrame
    results: pl.DataFrame

    @property
    def models(self) -> list[str]:
        """Names of the models, in the plan's order."""
        return self.cells["model"].unique(maintain_order=True).to_list()

    @property
    def plain(self) -> str:
        """The strategy that stands for no mitigation."""
        strategies = self.cells["strategy"].to_list()
        return PLAIN if PLAIN in strategies else strategies[0]

    def label(self, side: str) -> str:
        """What people call a side of a similarity: a stage's label, or the name itself."""
        return self.stages[side].label if side in self.stages else side

    def plain_cells(self) -> pl.DataFrame:
        """One cell per model and pair: without mitigation, the first seed and swept setting."""
        plain = self.cells.filter(pl.col("strategy") == self.plain)
        return plain.unique(["model", "pair"], keep="first", maintain_order=True)

    def measured(self, role: str, measure: str) -> pl.DataFrame:
        """The rows of one measure of the stage in a role, once for each cell that has it: `cells` and the rows' columns."""
        rows = self.similarity.filter((pl.col("measure") == measure) & pl.col("language").is_null())
        return self._in_role(role).join(rows, left_on="stage", right_on="fingerprint", how="inner", maintain_order="left_right")

    def layer_means(self, role: str) -> pl.DataFrame:
        """The `layers` rows of the activations in a role, once for each cell that has it."""
        return self._in_role(role).join(
            self.layers.rename({"model": "of"}), left_on="stage", right_on="fingerprint", how="inner", maintain_order="left_right"
        )

    def outputs(self, cell: str, role: str) -> dict[str, Any]:
        """What the manifest of the stage in a cell's role says; empty where it is not done."""
        stage = self.roles.filter((pl.col("cell") == cell) & (pl.col("role") == role))["stage"].to_list()
        return self.stages[stage[0]].outputs if stage and stage[0] in self.stages else {}

    def _in_role(self, role: str) -> pl.DataFrame:
        stages = self.roles.filter(pl.col("role") == role).drop("role")
        return self.cells.join(stages, on="cell", how="inner", maintain_order="left")


def grids(results: Results) -> list[str]:
    """Names of the grids that a storage has results of, in alphabetical order."""
    return sorted(results.cells().select("grid").unique().collect()["grid"].to_list())


def gather(results: Results, grid: str) -> GridTables:
    """Read what figures need.

    Args:
        results: of a storage.
        grid: the grid's name.

    Raises:
        UserError: the storage has no cells of that grid.
    """
    rows = results.cells().filter(pl.col("grid") == grid).collect()
    if rows.is_empty():
        raise UserError(f"no results of the grid {grid} here yet", fix="`cft-ray run GRID` makes some; see `cft-ray status GRID`")
    cells = rows.select(*CELL, pair=pl.col("phase1") + "→" + pl.col("phase2")).unique("cell", keep="first", maintain_order=True)
    done = results.stages().filter(pl.col("status") == "done").collect()
    # Rows that no role names (data sets that no cell pairs) are the grid's if the grid ran them.
    mine = set(rows["stage"]) | set(done.filter(pl.col("grid") == grid)["fingerprint"])
    of_mine = pl.col("fingerprint").is_in(sorted(mine))
    return GridTables(
        name=grid,
        cells=cells,
        roles=rows.select("cell", "role", "stage"),
        stages=dict(_facts(done)),
        similarity=results.similarity().filter(of_mine).collect(),
        layers=results.layers().filter(of_mine).collect(),
        summary=results.summary().filter(pl.col("grid") == grid).collect(),
        results=results.results().filter(pl.col("grid") == grid).collect(),
    )


def _facts(done: pl.DataFrame) -> Iterator[tuple[str, StageFacts]]:
    """In the order of attempts, so that the last one is what a dictionary keeps."""
    for row in done.sort("attempt").iter_rows(named=True):
        outputs = json.loads(row["outputs"]) if row["outputs"] else {}
        yield row["fingerprint"], StageFacts(row["kind"], row["label"] or row["fingerprint"][:8], outputs)
