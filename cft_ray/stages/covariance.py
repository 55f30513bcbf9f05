"""The `covariance` stage: how much the covariance of activations differs between two models, a decoder layer.

Reads `left` and `right`, two `activations` artifacts of the same prompts; writes ``tables/similarity.parquet`` alone. A
matter of seconds, done in this process. The study prints one norm with one matrix per model, which gives no curve over
layers; here each layer has its covariance over prompts, and both norms.
"""

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cft_ray.activations.statistics import cosine, covariance_difference
from cft_ray.activations.store import Activations
from cft_ray.errors import UserError
from cft_ray.metrics.schemas import table_of
from cft_ray.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Compare the two models' activations.

    Writes, per layer, ``covariance_frobenius`` and ``covariance_spectral`` (norms of the left covariance minus the right) and
    ``activation_cosine`` (of the mean activations).

    Returns:
        ``left`` and ``right``: what the tables call the models; ``n`` prompts; the largest ``frobenius`` and ``spectral``.

    Raises:
        UserError: the artifacts are of other prompts or of models of other shapes; a single prompt.
    """
    left, right = (context.summary(role)["model"] for role in ("left", "right"))
    ours, theirs = (Activations.read(context.input(role)) for role in ("left", "right"))
    _check(ours, theirs, f"{left} and {right}")
    rows: list[dict[str, Any]] = []
    layers = len(ours.means)
    for layer, (one, other) in enumerate(zip(ours.means, theirs.means, strict=True)):
        norms = covariance_difference(one, other)
        measures = {
            "covariance_frobenius": norms.frobenius,
            "covariance_spectral": norms.spectral,
            "activation_cosine": cosine(one.mean(0, dtype=np.float64), other.mean(0, dtype=np.float64)),
        }
        named = {"left": left, "right": right, "layer": layer}
        rows += [{"measure": measure, **named, "value": value} for measure, value in measures.items()]
        context.progress(done=layer + 1, total=layers, unit="layers")
    tables = context.output / "tables"
    tables.mkdir()
    pq.write_table(table_of("similarity", rows), tables / "similarity.parquet")
    largest = {
        name: max(row["value"] for row in rows if row["measure"] == f"covariance_{name}") for name in ("frobenius", "spectral")
    }
    return {"left": left, "right": right, "n": ours.prompts.num_rows, **largest}


def _check(ours: Activations, theirs: Activations, where: str) -> None:
    if not ours.prompts["id"].equals(theirs.prompts["id"]):
        raise UserError(
            "the activations were taken on other prompts", where=where, fix="take both on the same data set, sample and seed"
        )
    if ours.means.shape != theirs.means.shape:
        shapes = [f"{each.means.shape[0]} layers of {each.means.shape[2]}" for each in (ours, theirs)]
        raise UserError(f"the models have {' and '.join(shapes)}", where=where, fix="compare two models of one architecture")
    if ours.prompts.num_rows < 2:
        raise UserError("a single prompt has no covariance", where=where, fix="give at least two prompts")
