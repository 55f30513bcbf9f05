"""Layer freezing, the study's two heuristics (section 4, "LF").

LF_H1 freezes decoder blocks drawn at random; LF_H2 freezes, for each head of the query, key and value projections, the
layers in which that head changed most in Phase 1. Both keep the setting's constraints: the choice is made before
training, from a seed or from norms on disk.

What is frozen ends Phase 2 bit-identical. A whole tensor leaves the optimizer (``requires_grad``). Rows of a tensor
stay in it, but a hook on the gradient sets theirs to zero: AdamW's moments of such rows stay zero, and so does their
update, as long as there is no weight decay. Under ZeRO-3 the hook sees the whole gradient, before it is partitioned.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cft_ray.errors import UserError
from cft_ray.plan.config import local_config
from cft_ray.plan.specs import Checkpoint, DriftSpec, FinetuneSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.strategies.base import ModelSource, Phase2, Strategy
from cft_ray.strategies.selection import select

if TYPE_CHECKING:
    import torch


class _Freezing(Strategy):
    """What both heuristics share: the number of layers, checked while planning where the model's is known."""

    layers: int = Field(default=10, gt=0, le=1_000, description="how many layers are frozen (LF_H2: per projection and head)")

    def stages(self, phase2: Phase2) -> dict[str, Stage]:
        """None of its own.

        Raises:
            UserError: more layers than the model has, where a model trained from scratch or a local folder tells.
        """
        available = _known_layers(phase2.base) or _known_layers(phase2.phase1)
        if available is not None:
            self._check(available, phase2.label)
        return {}

    def _check(self, available: int, where: str | None = None) -> None:
        if self.layers > available:
            raise UserError(
                f"{self.layers} layers are to be frozen, but the model has {available}",
                where=where,
                fix=f"set the strategy's `layers` to at most {available}",
            )

    def facts(self, model: "torch.nn.Module") -> dict[str, Any]:
        """Frozen blocks and heads, and the fractions of frozen and trainable parameters."""
        from cft_ray.strategies.frozen import frozen_facts

        return frozen_facts(model)


class RandomLayers(_Freezing):
    """LF_H1: ``layers`` whole decoder blocks, drawn with the cell's seed."""

    def prepare(self, model: "torch.nn.Module", inputs: Mapping[str, Path], seed: int) -> "torch.nn.Module":
        """Freeze the drawn blocks.

        Raises:
            UserError: more layers than the model has.
        """
        from cft_ray.strategies.frozen import freeze_blocks, layer_count

        available = layer_count(model)
        self._check(available)
        chosen, _ = select(available, self.layers, seed)
        freeze_blocks(model, {int(layer) for layer in chosen})
        return model


class MostChangedHeads(_Freezing):
    """LF_H2: for each p of q, k, v and each head, the ``layers`` layers with the largest ‖W_phase1 − W_base‖.

    Key and value heads are counted as the model has them (grouped-query attention shares them among query heads).
    """

    granularity: Literal["head", "projection", "block"] = Field(
        default="head",
        description="what is ranked and frozen: each head's slice of q, k, v; each of q, k, v whole; or decoder blocks",
    )
    norm: Literal["absolute", "relative"] = Field(
        default="absolute", description="Frobenius norm of the change, as it is or divided by that of the base weights"
    )

    def stages(self, phase2: Phase2) -> dict[str, Stage]:
        """The norms of Phase 1's change; one stage for all cells that share Phase 1.

        Raises:
            UserError: more layers than the model has; weight decay, which would move frozen rows.
        """
        super().stages(phase2)
        if phase2.training.weight_decay > 0 and self.granularity == "head":
            raise UserError(
                f"LF_H2 cannot keep head slices unchanged under weight decay ({phase2.training.weight_decay})",
                where=phase2.label,
                fix="set weight_decay: 0 in the strategy's `training`, or granularity: projection or block",
            )
        inputs: dict[str, str] = {}
        checkpoints: dict[str, Checkpoint] = {}
        phase2.phase1.attach("left", inputs, checkpoints)
        phase2.base.attach("right", inputs, checkpoints)
        resources = phase2.resources.get("drift", Resources())
        label = f"{phase2.label} drift of phase 1"
        return {"drift": Stage(DriftSpec(checkpoints=checkpoints), inputs, label=label, resources=resources)}

    def prepare(self, model: "torch.nn.Module", inputs: Mapping[str, Path], seed: int) -> "torch.nn.Module":
        """Freeze what the norms in ``inputs["drift"]`` say.

        Raises:
            UserError: more layers than the model has; an architecture whose heads are not known.
        """
        from cft_ray.strategies.frozen import freeze_blocks, freeze_heads, layer_count

        self._check(layer_count(model))
        if self.granularity == "block":
            freeze_blocks(model, set(self._most_changed(self._blocks(inputs["drift"]))))
            return model
        chosen = {key: set(self._most_changed(norms)) for key, norms in self._heads(inputs["drift"]).items()}
        freeze_heads(model, lambda part: part.layer in chosen.get((part.projection, self._head(part.head)), ()))
        return model

    def _head(self, head: int) -> int:
        return head if self.granularity == "head" else 0

    def _heads(self, drift: Path) -> dict[tuple[str, int], dict[int, float]]:
        """(projection, head) -> layer -> norm; all heads of a projection together unless granularity is head."""
        import pyarrow.parquet as pq

        heads = pq.read_table(drift / "heads.parquet").to_pylist()
        if not heads:
            raise UserError(
                "the drift stage found no separate query, key and value heads in this architecture",
                where=str(drift),
                fix="use LF_H2 with granularity: block, or LF_H1",
            )
        norms: dict[tuple[str, int], dict[int, float]] = {}
        for (projection, head, layer), norm in self._norms(
            heads, lambda row: (row["projection"], self._head(row["head"]), row["layer"])
        ).items():
            norms.setdefault((projection, head), {})[layer] = norm
        return norms

    def _blocks(self, drift: Path) -> dict[int, float]:
        import pyarrow.parquet as pq

        tensors = pq.read_table(drift / "tensors.parquet").to_pylist()
        return self._norms((row for row in tensors if row["layer"] is not None), lambda row: row["layer"])

    def _norms(self, rows: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[Any, float]:
        """Norm of the rows of each key together."""
        changes: dict[Any, float] = {}
        bases: dict[Any, float] = {}
        for row in rows:
            changes[key(row)] = changes.get(key(row), 0.0) + row["l2"] ** 2
            bases[key(row)] = bases.get(key(row), 0.0) + row["l2_right"] ** 2
        norms = {group: math.sqrt(change) for group, change in changes.items()}
        if self.norm == "absolute":
            return norms
        return {
            group: norm / math.sqrt(bases[group]) if norm and bases[group] else math.inf if norm else 0.0
            for group, norm in norms.items()
        }

    def _most_changed(self, norms: Mapping[int, float]) -> list[int]:
        return sorted(norms, key=lambda layer: (-norms[layer], layer))[: self.layers]


def _known_layers(source: ModelSource) -> int | None:
    """Decoder blocks of a planned model, where that can be known without loading it."""
    if source.stage is not None and isinstance(source.stage.spec, FinetuneSpec) and source.stage.spec.scratch:
        return source.stage.spec.scratch.layers
    if source.checkpoint is not None and source.checkpoint.path:
        layers = (local_config(source.checkpoint.path) or {}).get("num_hidden_layers")
        return layers if isinstance(layers, int) else None
    return None
