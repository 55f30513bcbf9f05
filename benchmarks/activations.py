"""Taking mean activations against the bare decoder's forward passes on the same batches, alternately, in one process.

    python benchmarks/activations.py [--hidden 512] [--layers 8] [--prompts 256] [--batch-tokens 4096] [--repeats 5]

A random Mistral in float32 on a CPU, in bfloat16 on a GPU; random prompts of 16 to 256 tokens. Loading and tokenising are
not counted on either side.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from record import ROOT, record

from cft_ray.activations.measure import stream_activations
from cft_ray.activations.prompts import Prompts
from cft_ray.grid.settings import ScratchModel
from cft_ray.inference.batches import by_length, padded
from cft_ray.inference.model import LoadedModel, load
from cft_ray.training.model import create


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        shape = ScratchModel(
            hidden_size=arguments.hidden,
            layers=arguments.layers,
            heads=arguments.hidden // 64,
            kv_heads=arguments.hidden // 64,
            intermediate_size=arguments.hidden * 7 // 2,
        )
        model = load(str(create(shape, 0, Path(folder))), "bfloat16" if torch.cuda.is_available() else "float32")
    generator = np.random.default_rng(0)
    tokens = [generator.integers(3, 259, size).tolist() for size in generator.integers(16, 257, arguments.prompts)]
    prompts = Prompts([str(n) for n in range(len(tokens))], ["en"] * len(tokens), tokens, [False] * len(tokens), len(tokens))
    count = sum(map(len, tokens))
    runs: dict[str, list[float]] = {"bare": [], "activations": []}
    for _ in range(arguments.repeats + 1):  # the first round warms up
        runs["bare"].append(_timed(lambda: _bare(model, tokens, arguments.batch_tokens)))
        runs["activations"].append(_timed(lambda: list(stream_activations(model, prompts, arguments.batch_tokens))))
    seconds = {name: statistics.median(found[1:]) for name, found in runs.items()}
    figures = {
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "parameters": sum(each.numel() for each in model.causal.parameters()),
        "prompts": len(tokens),
        "tokens": count,
        **{f"{name}_tokens_per_second": count / value for name, value in seconds.items()},
        "ratio": seconds["bare"] / seconds["activations"],
        "ratio_of_rounds": [bare / ours for bare, ours in zip(runs["bare"][1:], runs["activations"][1:], strict=True)],
    }
    options = {key.replace("_", "-"): value for key, value in vars(arguments).items()}
    command = " ".join(["python benchmarks/activations.py", *(f"--{key} {value}" for key, value in options.items())])
    print(json.dumps(figures, indent=2))
    print(record("activations", command, figures).relative_to(ROOT))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of both; the median counts")
    return parser.parse_args()


@torch.inference_mode()
def _bare(model: LoadedModel, tokens: list[list[int]], batch_tokens: int) -> None:
    for rows in by_length([len(ids) for ids in tokens], batch_tokens):
        batch = padded([tokens[row] for row in rows], model.pad_id).to(model.device)
        model.decoder(input_ids=batch, use_cache=False)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
