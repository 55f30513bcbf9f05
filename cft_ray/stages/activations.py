"""The `activations` stage: a model's mean hidden activations on prompts, a decoder layer.

Reads `prompts` (a data set) and `model`. Writes ``activations.npy`` and ``prompts.parquet`` (`cft_ray.activations.store`), which
the `covariance` stage compares, and ``tables/layers.parquet``. The forward passes are a task with the stage's CPUs and
GPU; a prompt's activations come back as soon as its batch is done and go to disk.
"""

import time
from collections.abc import Iterator
from typing import Any, cast

import pyarrow.parquet as pq

from cft_ray.activations.measure import Part, read_model
from cft_ray.activations.prompts import Prompts
from cft_ray.activations.store import Writer
from cft_ray.data.accounts import KEY
from cft_ray.data.rows import read_rows
from cft_ray.metrics.schemas import table_of
from cft_ray.plan.specs import ActivationsSpec
from cft_ray.stages import remote, sides
from cft_ray.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Take the activations and write them.

    Returns:
        ``model`` and ``prompts``: what the tables call them; ``n`` prompts, those ``truncated``, ``tokens``, ``layers``,
        ``hidden_size``.

    Raises:
        UserError: prompts or a model that cannot be read, activations that are not finite.
    """
    model, data = (sides.name(context.stage, role) for role in ("model", "prompts"))
    context.progress(note="the model is loaded")
    parts = remote.stream(_read, context)
    prompts = next(parts)
    assert isinstance(prompts, Prompts)
    writer = Writer(prompts, context.output)
    total, done, start = sum(map(len, prompts.tokens)), 0, time.monotonic()
    for part in parts:
        assert isinstance(part, Part)
        writer.add(part)
        done += part.tokens
        speed = done / max(time.monotonic() - start, 1e-9)
        context.progress(done=done, total=total, unit="tokens", tokens_per_second=speed, note="")
    found = writer.close()
    tables = context.output / "tables"
    tables.mkdir()
    pq.write_table(table_of("layers", found.layers(model, data)), tables / "layers.parquet")
    layers, _, hidden = found.means.shape
    return {
        "model": model,
        "prompts": data,
        "n": len(prompts),
        "truncated": sum(prompts.truncated),
        "tokens": total,
        "layers": layers,
        "hidden_size": hidden,
        KEY: prompts.account.model_dump(),
    }


def _read(context: StageContext) -> Iterator[Prompts | Part]:
    """In the worker: inputs are fetched where they are read."""
    spec = cast(ActivationsSpec, context.stage.spec)
    folder = context.input("prompts")
    yield from read_model(context.model("model"), read_rows(folder), spec.template, spec.settings, where=str(folder))
