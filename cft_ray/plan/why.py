"""Which stages are done, and why the others are not: what differs from the nearest artifact.

The nearest artifact of a new stage is the one of its kind with the fewest differences; a difference is a setting (by
its dotted path), the kind's version, or an input. An input that is itself new is only named: its own line says why.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cft_ray.plan.fingerprint import canonical
from cft_ray.plan.stage import Plan, Stage

_ABSENT = object()


class Artifact(Protocol):
    """What must be known of an existing artifact; `cft_ray.artifacts.manifest.Manifest` is one."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> int: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def inputs(self) -> Mapping[str, str]: ...  # noqa: D102


@dataclass(frozen=True)
class Difference:
    """One thing in which a new stage differs from an artifact."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        if self.path.startswith("input "):
            return f"{self.path} is {self.new}"
        return f"{self.path}: {_short(self.old)} → {_short(self.new)}"


@dataclass(frozen=True)
class Reason:
    """Why a stage is, or is not, to be run."""

    status: Literal["cached", "new", "skipped"]
    nearest: str | None = None
    """fingerprint of the nearest artifact; None if there is none of the kind"""
    differences: tuple[Difference, ...] = ()
    skip: str | None = None

    def __str__(self) -> str:
        if self.status != "new":
            return f"skipped: {self.skip}" if self.skip else self.status
        return "; ".join(map(str, self.differences)) if self.nearest else "nothing like it is there"


def explain(plan: Plan, artifacts: Iterable[Artifact]) -> dict[str, Reason]:
    """Fingerprint -> reason, for every stage of the plan.

    Args:
        plan: whose stages are asked about.
        artifacts: what exists, e.g. the manifests of `ArtifactStore.manifests`.
    """
    by_kind: dict[str, list[_Known]] = {}
    known: set[str] = set()
    for artifact in artifacts:
        known.add(artifact.fingerprint)
        by_kind.setdefault(artifact.kind, []).append(_Known(artifact))
    comparison = _Comparison()
    return {
        fingerprint: Reason("cached")
        if fingerprint in known
        else Reason("skipped", skip=stage.skip)
        if stage.skip is not None
        else _nearest(stage, by_kind.get(stage.kind, []), plan, known, comparison)
        for fingerprint, stage in plan.stages.items()
    }


class _Known:
    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.text = canonical(artifact.settings)
        self.inputs = dict(artifact.inputs)


class _Comparison:
    """Differences of settings; kept, because many stages and artifacts share theirs."""

    def __init__(self) -> None:
        self._flat: dict[str, dict[str, Any]] = {}
        self._found: dict[tuple[str, str], list[Difference]] = {}

    def differences(self, old: _Known, stage: Stage) -> list[Difference]:
        new = stage.spec.canonical
        if old.text == new:
            return []
        key = (old.text, new)
        if key not in self._found:
            before = self._flattened(old.text, old.artifact.settings)
            after = self._flattened(new, None, stage)
            paths = [*after, *(path for path in before if path not in after)]
            self._found[key] = [
                Difference(path, before.get(path, _ABSENT), after.get(path, _ABSENT))
                for path in paths
                if before.get(path, _ABSENT) != after.get(path, _ABSENT)
            ]
        return self._found[key]

    def _flattened(self, text: str, settings: Mapping[str, Any] | None, stage: Stage | None = None) -> dict[str, Any]:
        if text not in self._flat:
            values = settings if settings is not None else stage.spec.identity() if stage is not None else {}
            self._flat[text] = dict(_leaves(values, ""))
        return self._flat[text]


def _nearest(stage: Stage, artifacts: list[_Known], plan: Plan, known: set[str], comparison: _Comparison) -> Reason:
    best: tuple[int, _Known, list[Difference]] | None = None
    for candidate in artifacts:
        settings = comparison.differences(candidate, stage)
        inputs = candidate.inputs
        count = len(settings) + sum(inputs.get(role) != fingerprint for role, fingerprint in stage.inputs.items())
        count += sum(role not in stage.inputs for role in inputs) + (candidate.artifact.version != stage.spec.version)
        if best is None or count < best[0]:
            best = count, candidate, settings
    if best is None:
        return Reason("new")
    _, nearest, settings = best
    differences = list(settings)
    if nearest.artifact.version != stage.spec.version:
        differences.append(Difference("version", nearest.artifact.version, stage.spec.version))
    for role, fingerprint in stage.inputs.items():
        old = nearest.inputs.get(role)
        if old != fingerprint:
            said = "new" if fingerprint in plan.stages and fingerprint not in known else f"another: {_called(fingerprint, plan)}"
            differences.append(Difference(f"input {role}", old, said))
    differences += [
        Difference(f"input {role}", old, "no longer read") for role, old in nearest.inputs.items() if role not in stage.inputs
    ]
    return Reason("new", nearest.artifact.fingerprint, tuple(differences))


def _leaves(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _called(fingerprint: str, plan: Plan) -> str:
    stage = plan.stages.get(fingerprint)
    return stage.label if stage is not None else fingerprint[:12]


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
