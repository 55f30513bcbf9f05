"""What a stage will take: tokens, FLOPs, memory, time, money. *None* stands for unknown; nothing is guessed.

Formulas: training takes 6·P FLOPs a token and attention 6·L·H·S more for causal rows of S tokens (Chowdhery et al. 2022,
PaLM, arXiv 2204.02311, appendix B, halved for causality), a forward pass a third of that. Time assumes that a share
`cluster.mfu` of the device's peak is reached: small batches (ZeRO-3 gathers all weights for each) and generation (bound
by memory) reach less. Steps and tokens are of the phase's own data set, without replayed rows. Replay and generated
answers count at their permitted length, so they are upper bounds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cft_ray.errors import UserError
from cft_ray.grid.problems import nearest
from cft_ray.grid.schema import Grid
from cft_ray.grid.settings import TrainingSettings
from cft_ray.plan.known import (
    BYTE_VOCABULARY,
    DATASETS,
    ITEMS,
    MEMORY_BYTES,
    PEAK_FLOPS,
    Shape,
    Size,
    checkpoint_shape,
    scratch_shape,
    toy_size,
)
from cft_ray.plan.memory import TrainingMemory, training_memory
from cft_ray.plan.specs import Checkpoint, DatasetSpec, EvaluateSpec, FinetuneSpec, ReplaySpec, Spec
from cft_ray.plan.stage import Plan, Resources, Stage

NOMINAL_SECONDS = {
    "dataset": 0.3,
    "finetune": 30.0,
    "replay": 10.0,
    "drift": 1.0,
    "evaluate": 10.0,
    "embed": 3.0,
    "similarity": 0.3,
    "activations": 3.0,
    "covariance": 0.3,
    "divergence": 3.0,
    "replay_quality": 3.0,
}
"""Where neither a device nor FLOPs are known: how the kinds compare. The order of stages rests on it, and what is shown as
left before any stage of the kind has ended."""
NOMINAL_START = {"finetune": 1.0, "evaluate": 1.0, "replay": 1.0}
NOMINAL_FLOPS = 5e10
"""a second, where no device is named: what one core of a server reaches on models of less than a million parameters"""
_TEMPLATE_CHARACTERS = {"alpaca": 170.0, "chat": 40.0, "plain": 4.0, "toy": 4.0}


@dataclass(frozen=True)
class Estimate:
    """Of one stage, all its workers together."""

    rows: float | None = None
    tokens: float | None = None
    steps: int | None = None
    flops: float | None = None
    memory_bytes: float | None = None
    """on each device"""
    memory: TrainingMemory | None = None
    """the parts of `memory_bytes`, of a training"""
    seconds: float | None = None
    device_hours: float | None = None
    money: float | None = None
    unknown: str | None = None
    """what would have to be known for the time"""

    def cost(self, kind: str) -> float:
        """Seconds for the order of stages, nominal where unknown."""
        if self.seconds is not None:
            return self.seconds
        if self.flops is not None:
            return NOMINAL_START.get(kind, 0.0) + self.flops / NOMINAL_FLOPS
        if self.steps is not None:
            return NOMINAL_START.get(kind, 0.0) + 0.1 * self.steps
        return NOMINAL_SECONDS.get(kind, 3.0)


class Estimator:
    """Estimates stages in topological order: what a stage makes (a model's shape, a data set's size) is known to the next.

    Raises:
        UserError: the grid names a device that is not in the table.
    """

    def __init__(self, grid: Grid) -> None:
        self.cluster = grid.cluster
        self.hints = {name: source.size_hint for name, source in grid.datasets.items()}
        if self.cluster.device is not None and self.cluster.device not in PEAK_FLOPS:
            raise UserError(
                f"unknown device {self.cluster.device!r}",
                where=grid.source.where(("cluster", "device")),
                fix=nearest(self.cluster.device, list(PEAK_FLOPS)),
            )
        self._shapes: dict[str, Shape | None] = {}
        self._sizes: dict[str, Size] = {}
        self._known: dict[tuple[Any, ...], tuple[Estimate, Spec]] = {}
        self._checkpoints: dict[str, Shape | None] = {}

    def of(self, spec: Spec, inputs: Mapping[str, str], resources: Resources) -> Estimate:
        """The estimate of a stage whose inputs were noted by `note`."""
        shape = self._shape(spec, inputs)
        sizes = tuple(self._sizes.get(inputs[role]) for role in ("data", "target") if role in inputs)
        # Seeds and strategies do not change a training's estimate; its settings are one object for all cells that share
        # them, and stay alive in the entry.
        settings = (id(spec.training), spec.template.name) if isinstance(spec, FinetuneSpec) else spec.canonical
        key = (settings, resources.workers, resources.gpus, shape, sizes)
        if key not in self._known:
            estimate = self._estimate(spec, shape, sizes)
            if isinstance(spec, FinetuneSpec) and shape is not None:
                memory = training_memory(shape, spec.training, resources.workers)
                estimate = replace(estimate, memory=memory, memory_bytes=memory.total)
            self._known[key] = self._priced(estimate, resources), spec
        return self._known[key][0]

    def note(self, fingerprint: str, spec: Spec, inputs: Mapping[str, str], name: str = "") -> None:
        """Remember what the stage makes. ``name``: of a data set in the grid, whose size hint then counts."""
        if isinstance(spec, DatasetSpec):
            self._sizes[fingerprint] = self._dataset(spec, name)
        elif isinstance(spec, FinetuneSpec):
            self._shapes[fingerprint] = self._shape(spec, inputs)

    def _shape(self, spec: Spec, inputs: Mapping[str, str]) -> Shape | None:
        if isinstance(spec, FinetuneSpec) and spec.scratch is not None:
            return scratch_shape(spec.scratch)
        checkpoints: Mapping[str, Checkpoint] = getattr(spec, "checkpoints", {})
        if "model" in inputs:
            return self._shapes.get(inputs["model"])
        named = checkpoints.get("model")
        if named is None:
            return None
        key = named.hub or named.path or ""
        if key not in self._checkpoints:
            self._checkpoints[key] = checkpoint_shape(named)
        return self._checkpoints[key]

    def _dataset(self, spec: DatasetSpec, name: str) -> Size:
        hint = self.hints.get(name)
        if hint is not None:
            return Size(hint.rows, None, hint.tokens_per_row)
        if spec.toy is not None:
            return toy_size(spec.toy, spec.languages, spec.rows)
        known = DATASETS.get(spec.hub or "", Size())
        if spec.rows is None:
            return known
        most = spec.rows * len(spec.languages)
        return replace(known, rows=min(most, known.rows) if known.rows else None)

    def _estimate(self, spec: Spec, shape: Shape | None, sizes: tuple[Size | None, ...]) -> Estimate:
        size = (sizes[0] if sizes else None) or Size()
        if isinstance(spec, FinetuneSpec):
            return self._training(spec, shape, size)
        if isinstance(spec, ReplaySpec):
            rows = math.ceil(spec.ratio * size.rows) if size.rows else None
            tokens = rows * spec.sampling.max_new_tokens if rows else None
            return self._generation(shape, rows, tokens, "rows of the phase 2 data set")
        if isinstance(spec, EvaluateSpec):
            return self._evaluation(spec, shape, size)
        if isinstance(spec, DatasetSpec):
            known = self._dataset(spec, "")
            return Estimate(rows=known.rows)
        return Estimate()

    def _training(self, spec: FinetuneSpec, shape: Shape | None, size: Size) -> Estimate:
        training = spec.training
        length = self._row_tokens(size, spec, shape)
        steps = _steps(training, size.rows, length)
        tokens = None
        if training.packing and steps is not None:
            tokens = steps * training.batch_size * float(training.packing)
        elif length is not None and steps is not None:
            tokens = steps * training.batch_size * length
        estimate = Estimate(rows=size.rows, tokens=tokens, steps=steps)
        missing = "the model's shape" if shape is None else "the data set's rows" if steps is None else "its rows' length"
        if shape is None or tokens is None or length is None:
            return replace(estimate, unknown=missing)
        flops = tokens * (6 * shape.parameters + 6 * shape.layers * shape.heads * shape.head_size * length)
        return replace(estimate, flops=flops)

    def _generation(self, shape: Shape | None, rows: float | None, tokens: float | None, missing: str) -> Estimate:
        estimate = Estimate(rows=rows, tokens=tokens)
        if shape is None or tokens is None:
            return replace(estimate, unknown="the model's shape" if shape is None else missing)
        return replace(estimate, flops=2.0 * shape.parameters * tokens, memory_bytes=2.0 * shape.parameters)

    def _evaluation(self, spec: EvaluateSpec, shape: Shape | None, size: Size) -> Estimate:
        if size.rows is not None and size.characters is not None:
            items, characters, answer = size.rows, size.characters, 0  # the rows hold their answers
        elif spec.benchmark in ITEMS:
            items, characters, answer = ITEMS[spec.benchmark]
        else:
            return Estimate(unknown="the benchmark's items")
        if spec.limit is not None:
            items = min(items, spec.limit * len(spec.tasks))
        new = min(answer, spec.generation.max_new_tokens or answer)
        return self._generation(shape, items, items * (characters / self._characters_per_token(shape) + new), "")

    def _characters_per_token(self, shape: Shape | None) -> float:
        return 1.0 if shape is not None and shape.vocabulary == BYTE_VOCABULARY else self.cluster.characters_per_token

    def _row_tokens(self, size: Size, spec: FinetuneSpec, shape: Shape | None) -> float | None:
        if size.tokens is not None:
            return min(size.tokens, spec.training.longest(None))
        if size.characters is None:
            return None
        characters = size.characters + _TEMPLATE_CHARACTERS[spec.template.name]
        return min(characters / self._characters_per_token(shape), spec.training.longest(None))

    def _priced(self, estimate: Estimate, resources: Resources) -> Estimate:
        peak = PEAK_FLOPS.get(self.cluster.device or "")
        devices = resources.workers * resources.gpus
        if estimate.flops is None or peak is None or not devices:
            unknown = estimate.unknown or (None if estimate.flops is None else "the device")
            return replace(estimate, unknown=unknown)
        seconds = estimate.flops / (peak * self.cluster.mfu * devices)
        hours = seconds * devices / 3600
        price = self.cluster.price_per_device_hour
        return replace(estimate, seconds=seconds, device_hours=hours, money=hours * price if price is not None else None)


def estimate_plan(plan: Plan, grid: Grid) -> dict[str, Estimate]:
    """Fingerprint -> estimate, for every stage of the plan."""
    estimator = Estimator(grid)
    found: dict[str, Estimate] = {}
    for fingerprint, stage in plan.stages.items():
        found[fingerprint] = estimator.of(stage.spec, stage.inputs, stage.resources)
        estimator.note(fingerprint, stage.spec, stage.inputs, stage.label)
    return found


def too_large(stage: Stage, estimate: Estimate, grid: Grid) -> str | None:
    """In words, why a stage's device cannot hold it; None if it can, or if that is unknown."""
    room = MEMORY_BYTES.get(grid.cluster.device or "")
    if room is None or estimate.memory_bytes is None or estimate.memory_bytes <= room:
        return None
    return (
        f"{stage.label} needs about {estimate.memory_bytes / 1e9:.0f} GB on each {grid.cluster.device}, "
        f"which has {room / 1e9:.0f} GB: more workers, gradient_checkpointing, offload, or fewer micro_batch_tokens"
    )


def _steps(training: TrainingSettings, rows: float | None, row_tokens: float | None) -> int | None:
    if training.steps is not None:
        return training.steps
    if rows is None or training.epochs is None:
        return None
    if training.packing:
        if row_tokens is None:
            return None
        rows = math.ceil(rows * row_tokens / training.packing)
    return training.epochs * math.ceil(rows / training.batch_size)
