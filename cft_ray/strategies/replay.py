"""Rehearsal: English rows beside the Phase 2 data set (section 4 of the study).

*Generative replay* (GR_5, GR_10) asks the Phase 1 model for answers to prompts of the Phase 2 data set's English
counterpart, and so needs neither Phase 1's data nor its weights during Phase 2. *English replay* (ER_10), the baseline,
takes the same prompts with the answers that the counterpart has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from cft_ray.errors import UserError
from cft_ray.plan.specs import Checkpoint, ReplaySpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.strategies.base import Phase2, Strategy
from cft_ray.strategies.selection import replay_count, select

if TYPE_CHECKING:
    import pyarrow as pa


class GenerativeReplay(Strategy):
    """GR: rows answered by the Phase 1 model.

    Keeps both constraints of the setting as the study reads them: prompts belong to Phase 2's side. Where the counterpart
    *is* Phase 1's data set (Alpaca for MultiAlpaca after a Phase 1 on Alpaca) they are Phase 1's prompts all the same,
    though never its answers.
    """

    ratio: float = Field(gt=0, le=1, description="rows to add, as a fraction of the rows of the Phase 2 data set")
    generate_ratio: float = Field(
        default=0.10, gt=0, le=1, description="rows to generate at least, so that several ratios share one generation"
    )

    def stages(self, phase2: Phase2) -> dict[str, Stage]:
        """One generation, shared by all ratios up to ``generate_ratio``: the smaller takes a prefix of the larger."""
        english = _english(phase2, "GR")
        inputs: dict[str, str] = {}
        checkpoints: dict[str, Checkpoint] = {}
        phase2.phase1.attach("model", inputs, checkpoints)
        inputs |= {"prompts": english.fingerprint, "target": phase2.data.fingerprint}
        spec = ReplaySpec(
            checkpoints=checkpoints,
            ratio=max(self.ratio, self.generate_ratio),
            template=phase2.template,
            sampling=phase2.sampling,
            seed=phase2.seed,
            engine=phase2.engine,
        )
        resources = phase2.resources.get("replay", Resources())
        return {"replay": Stage(spec, inputs, label=f"{phase2.label} replay", resources=resources)}

    def rows(self, rows: "pa.Table", inputs: Mapping[str, Path], seed: int) -> "pa.Table":
        """The Phase 2 rows, then the first ``ratio`` of their number from the generation.

        A column ``finish_reason`` behind the canonical ones says which answers were cut: these have no end to be taught.
        Empty answers are among the rows; the training leaves out and counts what has no answer.

        Raises:
            UserError: the generation holds fewer rows than that.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        count = replay_count(self.ratio, rows.num_rows)
        file = inputs["replay"] / "rows.parquet"
        replay = pq.read_table(file)
        if replay.num_rows < count:
            raise UserError(f"{replay.num_rows} replayed rows where {count} are needed", where=str(file))
        replay = replay.slice(0, count)
        both = _append(rows, replay, "replay", replay["prompt_id"].to_pylist(), replay["pass"].to_pylist())
        reasons = pa.array([*["stop"] * rows.num_rows, *replay["finish_reason"].to_pylist()], pa.string())
        return both.append_column("finish_reason", reasons)


class EnglishReplay(Strategy):
    """ER: the prompts of GR at the same ratio and seed, with the English counterpart's own answers.

    Where the counterpart *is* Phase 1's data set (Alpaca for MultiAlpaca after a Phase 1 on Alpaca), this is Phase 1's
    data: the baseline breaks the setting's first constraint.
    """

    uses_phase1_data = True
    ratio: float = Field(gt=0, le=1, description="rows to add, as a fraction of the rows of the Phase 2 data set")

    def stages(self, phase2: Phase2) -> dict[str, Stage]:
        """The English counterpart's data set."""
        return {"english": _english(phase2, "ER")}

    def rows(self, rows: "pa.Table", inputs: Mapping[str, Path], seed: int) -> "pa.Table":
        """The Phase 2 rows, then the selected rows of the counterpart."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        english = pq.read_table(inputs["english"] / "rows.parquet")
        selected, passes = select(english.num_rows, replay_count(self.ratio, rows.num_rows), seed)
        english = english.take(pa.array(selected))
        return _append(rows, english, "english", english["id"].to_pylist(), passes.tolist())


def _english(phase2: Phase2, name: str) -> Stage:
    if phase2.english is None:
        raise UserError(
            f"{name} needs the English counterpart of the Phase 2 data set",
            where=phase2.label,
            fix="name it in the data set's entry: `english: <data set>`",
        )
    return phase2.english


def _append(rows: "pa.Table", more: "pa.Table", source: str, prompts: list[str], passes: list[int]) -> "pa.Table":
    """Both tables' canonical columns; a prompt that comes again in a later pass gets an id of its own."""
    import pyarrow as pa

    ids = pa.array([f"{source}/{prompt}/{number}" for prompt, number in zip(prompts, passes, strict=True)], pa.string())
    more = more.set_column(more.schema.get_field_index("id"), "id", ids)
    return pa.concat_tables([rows, more.select(rows.schema.names).cast(rows.schema)])
