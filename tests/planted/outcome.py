"""What a run has left in its storage, without what differs from run to run: times, attempts, names drawn by lot."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import polars as pl

import cft_ray
from cft_ray.artifacts.lease import holders
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.metrics.reading import Results
from cft_ray.plan.stage import Stage
from cft_ray.storage.root import Storage


def sound(uri: str, stages: Iterable[Stage]) -> Results:
    """The tables of a run that ended well: every artifact whole and alone, recorded as done once, nothing held, nothing left.

    Raises:
        AssertionError: something is not so.
    """
    store, results = ArtifactStore(Storage(uri)), cft_ray.open(uri)
    attempts = results.stages().collect()
    for stage in stages:
        key = stage.fingerprint
        made = store.verify(stage.kind, key)
        rows = attempts.filter(fingerprint=key).select("attempt", "status").rows()
        assert Counter(status for _, status in rows)["done"] == 1 and (made.attempt, "done") in rows, (stage.label, rows)
        assert not store.storage.list("checkpoints", key), stage.label
        assert not holders(store.storage, [key]), stage.label
        beside = [entry.name for entry in store.storage.list("artifacts", stage.kind, key) if entry.name[0] != "."]
        assert beside == sorted([made.folder, "manifest.json"]), (stage.label, beside)
    return results


def light(uri: str, stages: Iterable[Stage]) -> dict[str, Any]:
    """What a grid of planted stages has left, to be compared: files, outputs and rows by label."""
    stages = list(stages)
    results, store, found = sound(uri, stages), ArtifactStore(Storage(uri)), {}
    steps = results.steps().collect()
    for stage in stages:
        made = store.require(stage.kind, stage.fingerprint)
        rows = steps.filter(fingerprint=stage.fingerprint).select("step", "loss").rows()
        found[stage.label] = {file.path: file.sha256 for file in made.files}, made.outputs["total"], rows
    return found | {"cells": results.cells().select("cell", "role", "stage").collect().rows()}


def real(uri: str, stages: Iterable[Stage]) -> dict[str, Any]:
    """What a real grid has left, to be compared: every number of its tables that is not a time."""
    results = sound(uri, stages)
    frames = {
        "results": results.results(),
        "scores": results.scores().drop("attempt"),
        "samples": results.samples().drop("attempt"),
        "rows": results.rows().drop("attempt"),
        "steps": results.steps().select("fingerprint", "step", "epoch", "loss", "lr", "grad_norm", "tokens", "samples"),
    }
    return {name: sorted(map(repr, frame.collect().rows())) for name, frame in frames.items()}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In which parts two outcomes differ."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def attempts(uri: str) -> int:
    """Attempts of stages that are on record."""
    return cft_ray.open(uri).stages().select(pl.len()).collect().item()
