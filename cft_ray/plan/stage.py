"""A stage: one node of the plan. Pure data; running it is the business of `cft_ray.stages`."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cft_ray.plan.fingerprint import fingerprint_of
from cft_ray.plan.specs import SPECS, Spec


@dataclass(frozen=True)
class Resources:
    """What a stage needs to run, as bundles that must each fit on one node. Never part of a fingerprint."""

    workers: int = 1
    cpus: float = 1.0
    """logical CPUs per worker"""
    gpus: float = 0.0
    """GPUs per worker"""
    hours: float | None = None
    """most that an attempt's work may take; None: by its estimate (`cft_ray.execute.watch`)"""
    still_minutes: float = 60.0
    """without progress after which an attempt is killed"""


@dataclass(frozen=True)
class Stage:
    """One piece of work.

    Args:
        spec: decides the result together with the inputs.
        inputs: role -> fingerprint of the stage whose artifact is read.
        label: what people read, e.g. ``mistral-toy alpaca→multialpaca LF_H2``; not identity.
        resources: not identity.
        cost: estimated seconds (any consistent unit will do), for critical-path order; not identity.
        skip: why it is not run, where the grid lacks what it needs (a judge): it stands in the plan, and counts as no
            failure and as no gap; not identity.
    """

    spec: Spec
    inputs: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    resources: Resources = Resources()
    cost: float = 1.0
    skip: str | None = None

    @property
    def kind(self) -> str:
        """Of the spec."""
        return self.spec.kind

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; see `cft_ray.plan.fingerprint`."""
        return fingerprint_of(self.kind, self.spec.version, self.spec.canonical, self.inputs)

    @cached_property
    def loads(self) -> tuple[str | None, str] | None:
        """Names the model that the stage's process has loaded when it ends; equal for stages that can share one."""
        if self.spec.loads is None or self.resources.workers > 1:  # several workers are no process of the stage's own
            return None
        return self.inputs.get("model"), self.spec.loads

    def to_json(self) -> dict[str, Any]:
        """Everything needed to rebuild the stage in another process, as plain JSON values."""
        return {
            "kind": self.kind,
            "spec": self.spec.model_dump(mode="json"),
            "inputs": dict(self.inputs),
            "label": self.label,
            "resources": vars(self.resources),
            "cost": self.cost,
            "skip": self.skip,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Stage":
        """Inverse of :meth:`to_json`."""
        return cls(
            spec=SPECS[data["kind"]].model_validate(data["spec"]),
            inputs=data["inputs"],
            label=data["label"],
            resources=Resources(**data["resources"]),
            cost=data["cost"],
            skip=data.get("skip"),
        )


def skips(reasons: Iterable[str | None]) -> list[str]:
    """A line for each reason why stages are skipped, from the ``skip`` of some stages; None: it is not skipped."""
    counts = Counter(reason for reason in reasons if reason is not None)
    return [f"skipped: {reason} ({count} stage{'s' if count > 1 else ''})" for reason, count in counts.items()]


@dataclass(frozen=True)
class Plan:
    """The graph of a grid's unique stages, and which cell uses which stage.

    ``stages`` is in topological order (inputs first), keyed by fingerprint.
    ``cells`` are the rows of the results: see `cft_ray.plan.build`. ``notes`` say what is done otherwise than defaults say.
    """

    grid: str
    stages: Mapping[str, Stage]
    cells: tuple["PlannedCell", ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the stages that make it up.

    ``roles`` maps a role (``base``, ``phase1``, ``phase2``, ``phase2:TA:toy_letters`` …) to a fingerprint: model roles
    name the `finetune` stage (absent for named checkpoints), score roles ``{model role}:{ability}:{benchmark}`` name
    the `evaluate` stage; ``insight:…`` roles see `cft_ray.plan.insight`.
    """

    cell: str
    """stable name: model/phase1→phase2/strategy/seed[/setting=value…]"""
    model: str
    phase1: str
    phase2: str
    strategy: str
    seed: int
    settings: Mapping[str, Any]
    """swept settings only, e.g. ``{"training.learning_rate": 1e-5}``"""
    roles: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {**vars(self), "settings": dict(self.settings), "roles": dict(self.roles)}
