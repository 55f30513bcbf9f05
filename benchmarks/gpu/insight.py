"""Drift, activations and KL at full size, against what the machine can do at most.

    python benchmarks/gpu/insight.py

Drift reads two checkpoints' files on the host's processors: bytes a second, against reading the same files and doing nothing
(Mistral's tensor shapes with as many layers as make `--gib` together, since the rate does not depend on their number).
Activations and KL run Mistral-7B's shape in bf16 with random weights made on the device (two of them for KL, 29 GB): tokens a
second against the bare forward passes on the same batches, and operations a second as a share of the device's peak.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import world

# isort: split
import activations as benchmark_of_activations
import drift as benchmark_of_drift
import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel

from cft_ray.activations.measure import stream_activations
from cft_ray.activations.prompts import Prompts
from cft_ray.data.rows import table
from cft_ray.divergence.kl import BLOCK
from cft_ray.divergence.measure import compare
from cft_ray.grid.settings import DivergenceSettings, Template, TrainingSettings
from cft_ray.inference.model import LoadedModel
from cft_ray.models.outputs import outputs_of
from cft_ray.plan.known import Shape
from cft_ray.training import group, hardware
from cft_ray.training.examples import encode
from cft_ray.training.model import byte_tokenizer

NAME = "mistral-7b"
LONGEST = 1024


@dataclass(frozen=True)
class Size:
    """Of the work."""

    shape: Shape
    prompts: int
    longest: int
    batch_tokens: int
    repeats: int
    stored: Shape
    """of the checkpoints that drift reads"""


def size_of(given: argparse.Namespace) -> Size:
    """Full, or tiny for a rehearsal."""
    if given.rehearse:
        return Size(world.TINY, 12, 60, 256, 1, world.TINY)
    whole = world.MODELS[NAME]
    layers = int((given.gib * 2**30 / 4 - 2 * whole.embedding_parameters) / whole.block_parameters)  # two sides of 2 bytes
    return Size(whole, 512, LONGEST, 16384, 3, replace(whole, layers=min(whole.layers, max(1, layers))))


def alternately(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turn; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            world.synchronise()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def _save(causal: PreTrainedModel, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(causal.config.to_json_string())
    weights = {name: tensor.cpu() for name, tensor in causal.state_dict().items()}
    save_torch_state_dict(weights, folder, max_shard_size="1GB")


def of_drift(size: Size) -> dict[str, Any]:
    """A row of the table: bytes a second, the files in the page cache."""
    threads = min(16, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="cft-ray-drift-") as folder:
        for seed, side in enumerate(("left", "right")):
            _save(world.random_model(NAME, size.stored, dtype=torch.bfloat16, seed=seed), Path(folder) / side)
        read = sum(file.stat().st_size for file in benchmark_of_drift._files(folder))
        works: dict[str, Callable[[], object]] = {
            "reading": lambda: benchmark_of_drift._read(folder, threads),
            "ours": lambda: benchmark_of_drift._drift(folder, threads),
        }
        seconds = alternately(works, size.repeats)
    return {
        "measure": "drift",
        "of": f"{read / 1e9:.1f} GB, {threads} threads",
        "rate": read / seconds["ours"],
        "unit": "bytes/s",
        "bound": read / seconds["reading"],
        "bound is": "reading the files",
        "ratio": seconds["reading"] / seconds["ours"],
    }


def loaded(size: Size, seed: int) -> LoadedModel:
    """A model with random weights; nothing is read."""
    causal = world.random_model(NAME, size.shape, dtype=torch.bfloat16, seed=seed).eval()
    return LoadedModel(f"random {seed}", causal, byte_tokenizer(world.POSITIONS), world.POSITIONS, outputs_of(causal.config))


def of_activations(size: Size, model: LoadedModel) -> dict[str, Any]:
    """A row of the table."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(size.longest // 16, size.longest + 1, size.prompts)
    tokens = [generator.integers(3, size.shape.vocabulary, length).tolist() for length in lengths]
    names = [str(place) for place in range(len(tokens))]
    prompts = Prompts(names, ["en"] * len(tokens), tokens, [False] * len(tokens), len(tokens))
    works: dict[str, Callable[[], object]] = {
        "bare": lambda: benchmark_of_activations._bare(model, tokens, size.batch_tokens),
        "ours": lambda: list(stream_activations(model, prompts, size.batch_tokens)),
    }
    seconds = alternately(works, size.repeats)
    count = int(lengths.sum())
    head = size.shape.embedding_parameters
    return _row("activations", size, count, seconds, lengths, models=1, less=head)


def of_divergence(size: Size, left: LoadedModel, right: LoadedModel) -> dict[str, Any]:
    """A row of the table."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(size.longest // 16, size.longest - 8, size.prompts // 4)
    rows = table(
        {"id": str(place), "language": "en", "instruction": "q" * (length // 2), "output": "a" * (length - length // 2)}
        for place, length in enumerate(lengths.tolist())
    )
    template = Template(name="plain")
    settings = DivergenceSettings(sample=None, max_length=size.longest, batch_tokens=size.batch_tokens)
    examples = encode(rows, template, left.tokenizer, TrainingSettings(max_length=size.longest), where="rows")
    ids = [examples.ids(row).tolist() for row in range(len(examples))]

    def bare() -> None:
        for model in (left, right):
            benchmark_of_activations._bare(model, ids, size.batch_tokens)

    found: list[float] = []

    def ours() -> None:
        found.append(compare(left, right, rows, template, settings, where="rows").summary["kl_all"])

    seconds = alternately({"bare": bare, "ours": ours}, size.repeats)
    peaks = {}
    for name, work in (("bare", bare), ("ours", ours)):
        world.forget_peak()
        work()
        peaks[name] = hardware.peak_memory(group.device())
    row = _row("KL", size, int(examples.lengths.sum()), seconds, examples.lengths, models=2, less=0)
    return {
        **row,
        "added GB": (peaks["ours"] - peaks["bare"]) / 1e9,
        "added at most GB": added(size),
        "kl": found[-1],
    }


def added(size: Size) -> float:
    """GB that KL may hold beside the forward passes: three blocks of logits in float32, and both last hidden states twice."""
    return (3 * 4 * BLOCK + 4 * 2 * size.batch_tokens * size.shape.hidden) / 1e9


def _row(
    measure: str, size: Size, tokens: int, seconds: dict[str, float], lengths: np.ndarray, *, models: int, less: int
) -> dict[str, Any]:
    """``less``: parameters that take no part in the forward pass, beside the embedding."""
    forward = (world.flops_per_token(size.shape, lengths) - 6.0 * less) / 3 * models
    peak = world.device()["peak_bf16_flops"]
    rate = forward * tokens / seconds["ours"]
    return {
        "measure": measure,
        "of": f"{tokens:,} tokens, {models} x {size.shape.parameters / 1e9:.2f}B parameters",
        "rate": rate,
        "unit": "FLOP/s",
        "bound": peak,
        "bound is": "the device's peak" if peak else None,
        "ratio": rate / peak if peak else None,
        "tokens/s": tokens / seconds["ours"],
        "to bare passes": seconds["bare"] / seconds["ours"],
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--gib", type=float, default=4.0, help="size of the two checkpoints that drift reads, together")

    given = world.arguments(__doc__, add)
    begin = time.perf_counter()
    size = size_of(given)
    rows = [of_drift(size)]
    left = loaded(size, 0)
    rows.append(of_activations(size, left))
    if time.perf_counter() - begin < given.budget:
        rows.append(of_divergence(size, left, loaded(size, 1)))
    world.finish("insight", given, rows, {"seconds": time.perf_counter() - begin})


if __name__ == "__main__":
    main()
