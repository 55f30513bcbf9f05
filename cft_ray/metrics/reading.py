"""Reading the tables: `cft_ray.open(uri)` and its polars LazyFrames. No Ray, no torch.

Files are looked up when a frame is collected, so a frame follows a running grid, and a compaction cannot take its
files away. What counts when a stage ran more than once:

- `steps`: per step, the highest attempt (a resumed training sends the steps after its checkpoint again);
- `scores`, `samples`, `similarity`, `layers`, `replay`, `rows`: the rows of the highest attempt that is done;
- `stages`: every attempt, in its last state;
- `cells`: a cell as it was in the last run of its grid.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from cft_ray.errors import UserError
from cft_ray.metrics.cells import PHASES
from cft_ray.metrics.schemas import KEY, SCHEMAS
from cft_ray.metrics.store import FOLDER, read_files
from cft_ray.storage.root import Storage

_DRIFT = ("mpd", "rms", "l2")
CELL = ("grid", "cell", "model", "phase1", "phase2", "strategy", "seed", "settings")


def open_results(uri: str | Path) -> "Results":
    """The results under a storage; available as `cft_ray.open`.

    Args:
        uri: the grid's ``storage.uri``: a folder, ``s3://…`` or ``gs://…``.

    Raises:
        UserError: there is no such storage, or it cannot be reached.
    """
    storage = Storage(uri)
    kind = storage.kind()
    if kind != "folder":
        what = "there is no storage here" if kind is None else "this is a file, and no storage"
        raise UserError(what, where=str(uri), fix="give the grid's storage.uri; `cft-ray run GRID` makes it")
    return Results(storage)


class Results:
    """The tables of one storage as polars LazyFrames, with the columns of `cft_ray.metrics.schemas`.

    A table that does not exist yet is an empty frame. A damaged or foreign file is left out with a warning.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @property
    def storage(self) -> Storage:
        """Where the tables lie."""
        return self._storage

    def cells(self) -> pl.LazyFrame:
        """One row per cell and role: the stage that plays it, as of the last run that had the cell."""
        return self._table("cells").filter(_last("attempt", "grid", "cell")).sort("grid", "attempt", "sequence")

    def stages(self) -> pl.LazyFrame:
        """One row per attempt of a stage, in its last known state."""
        rows = self._table("stages").filter(_last("sequence", "fingerprint", "attempt"))
        return rows.sort("start", "fingerprint", "attempt")

    def steps(self) -> pl.LazyFrame:
        """One row per optimizer step of a training, running ones included."""
        return self._table("steps").filter(_last("attempt", "fingerprint", "sequence")).sort("fingerprint", "sequence")

    def scores(self) -> pl.LazyFrame:
        """One row per evaluation, language and metric."""
        return self._of_done_attempts("scores")

    def samples(self) -> pl.LazyFrame:
        """One row per test item answered."""
        return self._of_done_attempts("samples")

    def similarity(self) -> pl.LazyFrame:
        """One row per measure and pair of data sets or models (and layer, projection, head)."""
        return self._of_done_attempts("similarity")

    def layers(self) -> pl.LazyFrame:
        """One row per model and layer."""
        return self._of_done_attempts("layers")

    def replay(self) -> pl.LazyFrame:
        """One row per replay artifact, side (generated or original answers), measure and language."""
        return self._of_done_attempts("replay")

    def rows(self) -> pl.LazyFrame:
        """One row per stage that reads rows and fate of them: came, used, and by reason left_out, set_aside, noted."""
        return self._of_done_attempts("rows")

    def results(self) -> pl.LazyFrame:
        """What people want: one row per cell, benchmark and language, and one with the language ``mean``.

        Columns: those of the cell (`CELL`), `pair`, `ability`, `benchmark`, `metric`, `language`; `base_score`,
        `phase1_score`, `phase2_score`: the shown metric before, after Phase 1 and after Phase 2, null where it is not
        there (yet); `change`: Phase 2 minus Phase 1; `skipped`: why the benchmark is not run, null where it is. The mean is
        over the benchmark's languages; a cell that has no score yet has its ``mean`` rows, with nulls.
        """
        roles = self.cells().filter(pl.col("benchmark").is_not_null())
        shown = self.scores().filter("shown").select(pl.col("fingerprint").alias("stage"), "metric", "language", "value")
        # a mean with a hole in it is no mean: null if one language is null
        whole = pl.when(pl.col("value").null_count() == 0).then(pl.col("value").mean())
        mean = shown.group_by("stage", "metric").agg(whole.alias("value")).with_columns(language=pl.lit("mean"))
        scored = roles.join(pl.concat([shown, mean], how="diagonal"), on="stage", how="left", maintain_order="left_right")
        rows = scored.with_columns(pl.col("language").fill_null("mean"))
        score = {f"{phase}_score": pl.col("value").filter(pl.col("phase") == phase).first() for phase in PHASES}
        return (
            rows.group_by(*CELL, "ability", "benchmark", "language", maintain_order=True)
            .agg(pl.col("metric").drop_nulls().first(), pl.col("skipped").drop_nulls().first(), **score)
            .with_columns(
                pair=pl.col("phase1") + "→" + pl.col("phase2"),
                change=pl.col("phase2_score") - pl.col("phase1_score"),
            )
            .select(*CELL, "pair", "ability", "benchmark", "metric", "language", *score, "change", "skipped")
        )

    def summary(self) -> pl.LazyFrame:
        """One row per cell: averages of both abilities and the continual-learning metrics.

        With R[i,t] the score on benchmark t (mean over its languages) after phase i, 0 = base:

        - `ta_base`, `ta_phase1`, `ta_phase2`, and `la_…`: mean over the ability's benchmarks of R[i,t];
        - `ta_change`, `la_change`: Phase 2 minus Phase 1;
        - `backward_transfer`: mean over TA of R[2,t] − R[1,t]; negative means forgetting;
        - `forgetting`: mean over TA of max(R[0,t], R[1,t]) − R[2,t]; positive means forgetting;
        - `forward_transfer`: mean over LA of R[1,t] − R[0,t];
        - `learning`: mean over LA of R[2,t] − R[1,t];
        - `scores_due`, `scores_there`: evaluations that the cell asks for, and those that are there;
        - `skipped`: why benchmarks are not run, null where all are; they are neither due nor in the means.

        A metric is null where one of its scores is absent; what needs the base is null where the base was not
        evaluated. Definitions: the project's reading of the study (arXiv 2410.16006), in `docs/tables.md`.
        """
        roles = self.cells()
        due = roles.group_by("grid", "cell").agg(
            scores_due=(pl.col("benchmark").is_not_null() & pl.col("skipped").is_null()).sum(),
            skipped=pl.when(pl.col("skipped").is_not_null().any()).then(
                pl.col("skipped").drop_nulls().unique(maintain_order=True).str.join("; ")
            ),
        )
        base, first, second = (pl.col(f"{phase}_score") for phase in PHASES)
        averages = {
            f"{ability.lower()}_{phase}": _whole_mean(pl.col(f"{phase}_score"), ability)
            for ability in ("TA", "LA")
            for phase in PHASES
        }
        metrics = {
            "backward_transfer": _whole_mean(second - first, "TA"),
            "forgetting": _whole_mean(pl.when(base.is_not_null()).then(pl.max_horizontal(base, first)) - second, "TA"),
            "forward_transfer": _whole_mean(first - base, "LA"),
            "learning": _whole_mean(second - first, "LA"),
        }
        means = self.results().filter(pl.col("language") == "mean")
        cells = means.group_by(*CELL, "pair", maintain_order=True).agg(
            **averages, **metrics, scores_there=pl.sum_horizontal(base.count(), first.count(), second.count())
        )
        return cells.join(due, on=["grid", "cell"], how="left", maintain_order="left").select(
            *CELL,
            "pair",
            *(f"ta_{phase}" for phase in PHASES),
            (pl.col("ta_phase2") - pl.col("ta_phase1")).alias("ta_change"),
            *(f"la_{phase}" for phase in PHASES),
            (pl.col("la_phase2") - pl.col("la_phase1")).alias("la_change"),
            *metrics,
            "scores_due",
            "scores_there",
            "skipped",
        )

    def mpd(self) -> pl.LazyFrame:
        """The study's distance of models (arXiv 2410.16006, section 5), raw and scaled: one row per cell and drift of it.

        Columns: those of the cell (`CELL`); `role` of the drift in the cell; `comparison`, the role without the names of data
        sets; `stage`, `left`, `right` as in `similarity`; of the whole models `mpd` (mean of the tensors' L2 norms), `rms` per
        parameter and global `l2`; `mpd_scaled`: `mpd` divided by the largest one of the same grid, model and comparison, null
        where that is 0. Which comparison a number belongs to is the reader's choice, hence nothing scaled is stored.
        """
        whole = pl.all_horizontal(pl.col("layer", "projection", "head").is_null())
        similarity = self.similarity().filter(whole & pl.col("measure").is_in(_DRIFT))
        value = {name: pl.col("value").filter(pl.col("measure") == name).first() for name in _DRIFT}
        pairs = similarity.group_by("fingerprint", "left", "right").agg(**value).rename({"fingerprint": "stage"})
        roles = self.cells().filter(pl.col("role").str.starts_with("insight:drift:"))
        largest = pl.col("mpd").max().over("grid", "model", "comparison")
        return (
            roles.with_columns(comparison=pl.col("role").str.extract(r"^insight:drift:([^:]+)"))
            .join(pairs, on="stage", how="inner", maintain_order="left")
            .with_columns(mpd_scaled=pl.when(largest > 0).then(pl.col("mpd") / largest))
            .select(*CELL, "role", "comparison", "stage", "left", "right", *_DRIFT, "mpd_scaled")
        )

    def _of_done_attempts(self, name: str) -> pl.LazyFrame:
        done = self.stages().filter(pl.col("status") == "done").select("fingerprint", "attempt")
        rows = self._table(name).join(done, on=["fingerprint", "attempt"], how="semi")
        return rows.filter(_last("attempt", "fingerprint")).sort("fingerprint", "sequence")

    def _table(self, name: str) -> pl.LazyFrame:
        """The union of a table's files by key, read when it is collected, columns and rows as the query needs them."""

        def source(
            columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, batch: int | None
        ) -> Iterator[pl.DataFrame]:
            wanted = columns if columns is not None else SCHEMAS[name].names
            read = [*KEY, *(column for column in wanted if column not in KEY)]
            parts = [_frame(table) for _, table in read_files(self._storage, name, read)] or [empty.select(read)]
            frame = pl.concat(parts).unique(subset=KEY, keep="any").select(wanted)
            frame = frame.filter(predicate) if predicate is not None else frame
            yield frame.head(rows) if rows is not None else frame

        empty = _frame(SCHEMAS[name].empty_table())
        where = self._storage.location(FOLDER, name)
        return register_io_source(source, schema=empty.schema, explain_name=f"table {name}", explain_detail=where)


def _frame(table: pa.Table) -> pl.DataFrame:
    return cast(pl.DataFrame, pl.from_arrow(table))


def _last(column: str, *group: str) -> pl.Expr:
    """The rows with the highest value of a column within their group."""
    return pl.col(column) == pl.col(column).max().over(*group)


def _whole_mean(values: pl.Expr, ability: str) -> pl.Expr:
    """Mean over the benchmarks of an ability that are run; null where there are none, or one of them is null."""
    of_ability = values.filter((pl.col("ability") == ability) & pl.col("skipped").is_null())
    return pl.when(of_ability.null_count() == 0).then(of_ability.mean())
