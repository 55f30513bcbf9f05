"""Plans of planted stages, and what their runs left behind."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import polars as pl
from toystage import ToySpec

from cft_ray.metrics.schemas import KEY, SCHEMAS
from cft_ray.metrics.store import read_files
from cft_ray.plan.stage import Plan, PlannedCell, Resources, Stage
from cft_ray.storage.root import Storage


class World:
    """A storage and the log of its stages' runs, in one folder; the storage may lie elsewhere."""

    def __init__(self, folder: Path, storage: str | None = None) -> None:
        self.storage = storage or str(folder / "storage")
        self.log = folder / "runs.log"

    def stage(self, name: str, inputs: Sequence[Stage] = (), cpus: float = 1.0, **settings: Any) -> Stage:
        spec = ToySpec(name=name, log=str(self.log), **settings)
        roles = {f"role{index}": source.fingerprint for index, source in enumerate(inputs)}
        return Stage(spec, roles, label=name, resources=Resources(cpus=cpus))

    def began(self) -> Counter[str]:
        """Name -> how often a run of it began."""
        return self._count("begin")

    def ended(self) -> Counter[str]:
        """Name -> how often a run of it came to its end."""
        return self._count("end")

    def _count(self, event: str) -> Counter[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Counter(line.split()[0] for line in lines if line.endswith(event))

    def table(self, name: str) -> pl.DataFrame:
        """The union of a table's files by key, which is what a table is."""
        parts = read_files(Storage(self.storage), name, SCHEMAS[name].names)
        return pl.concat([cast(pl.DataFrame, pl.from_arrow(rows)) for _, rows in parts]).unique(KEY)

    def steps(self, stage: Stage) -> list[int]:
        """The steps in the table under the attempt that counts, doubled ones doubled."""
        rows = self.table("steps").filter(pl.col("fingerprint") == stage.fingerprint)
        return sorted(rows.filter(pl.col("attempt") == pl.col("attempt").max())["step"].to_list())

    def attempts(self, stage: Stage) -> list[str]:
        """Statuses of the recorded attempts, in order."""
        rows = self.table("stages").filter(pl.col("fingerprint") == stage.fingerprint)
        return rows.sort("attempt", "sequence")["status"].to_list()


def plan(*stages: Stage, grid: str = "toy") -> Plan:
    """A plan with one cell for each stage that nothing else uses: the stage and its inputs, and theirs."""
    by_name = {stage.fingerprint: stage for stage in stages}
    used = {source for stage in stages for source in stage.inputs.values()}
    cells = []
    for stage in stages:
        if stage.fingerprint not in used:
            below, roles = [stage.fingerprint], {}
            seen: set[str] = set()
            while below:
                key = below.pop()
                if key not in seen:  # a graph has far more paths than stages
                    seen.add(key)
                    roles[f"part{len(roles)}"] = key
                    below += by_name[key].inputs.values()
            cells.append(PlannedCell(stage.label, "m", "x", "y", "none", 0, {}, roles))
    return Plan(grid, by_name, tuple(cells))
