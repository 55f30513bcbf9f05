"""What the GPU benchmarks share: shapes, models whose weights are made on the device, rows, and how results are given out.

Nothing here or in its neighbours imports Ray, DeepSpeed or vLLM. A checkout, torch, transformers and the wheels of `pack.py` are
enough.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from record import record  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel  # noqa: E402

from cft_ray.grid.settings import TrainingSettings  # noqa: E402
from cft_ray.plan.known import SHAPES, Shape  # noqa: E402
from cft_ray.plan.memory import training_memory  # noqa: E402
from cft_ray.training import group, hardware  # noqa: E402
from cft_ray.training.examples import Examples, RowCounts  # noqa: E402

MODELS = {"mistral-7b": SHAPES["mistralai/Mistral-7B-v0.1"], "llama-3-8b": SHAPES["meta-llama/Meta-Llama-3-8B"]}
TINY = Shape(layers=2, hidden=64, heads=2, kv_heads=1, intermediate=96, vocabulary=300, head_size=32)
"""of rehearsals"""
POSITIONS = 4096
CONTEXT_BYTES = 3e9
"""of a device, that the CUDA context and fragmentation take (`cft_ray.plan.memory`)"""
PLAIN_BYTES = 18
"""a parameter, of the plain loop: weights in bf16, and gradients, master weights and two moments in fp32"""


def arguments(doc: str | None, add: Any = None) -> argparse.Namespace:
    """The command line: what all have, and what ``add`` (called with the parser) adds.

    Exits with 2 where there is no GPU and none was told to do without.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, on a CPU too; nothing is recorded")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--budget", type=float, default=450, help="seconds; what is not begun by then is left out, and said")
    if add:
        add(parser)
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        print("torch sees no GPU here; --rehearse runs tiny shapes on a CPU", file=sys.stderr)
        sys.exit(2)
    if given.rehearse:
        torch.set_num_threads(1)
    return given


def finish(name: str, given: argparse.Namespace, rows: Sequence[dict[str, Any]], figures: dict[str, Any]) -> None:
    """Print the rows as a table, write the figures, and record them if this is no rehearsal.

    Args:
        name: of the script.
        given: of `arguments`.
        rows: of the table.
        figures: beside the rows.
    """
    body = {"device": device(), "rehearsal": given.rehearse, "rows": list(rows), **figures}
    print(f"{name} on {body['device']['name']}")
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(body, indent=2), encoding="utf-8")
    if not given.rehearse:
        print(record(f"gpu_{name}", f"python benchmarks/gpu/{name}.py", body))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as aligned text."""
    if not rows:
        return "(nothing)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_shown(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1e4
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def device() -> dict[str, Any]:
    """Name, memory and peak of the device."""
    on = group.device()
    if on.type == "cpu":
        return {"name": "CPU", "memory_bytes": None, "peak_bf16_flops": None}
    memory = torch.cuda.get_device_properties(on).total_memory
    return {"name": torch.cuda.get_device_name(on), "memory_bytes": memory, "peak_bf16_flops": hardware.peak_flops(on) or None}


def random_model(name: str, shape: Shape, *, dtype: torch.dtype, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A model of a shape whose weights are drawn on the device: no file is read or written.

    Args:
        name: of `MODELS`; says whether it is a Llama or a Mistral.
        shape: possibly with fewer layers.
        dtype: of the weights.
        attention: transformers' name of it.
        seed: of the weights.
    """
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
    }
    config = LlamaConfig(**sizes) if name.startswith("llama") else MistralConfig(**sizes, sliding_window=None)
    with torch.device(group.device()):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def random_examples(lengths: Sequence[int], vocabulary: int) -> Examples:
    """Rows of random tokens of the given lengths; the second half of each is its answer."""
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    taught = np.zeros(offsets[-1], dtype=bool)
    for start, length in zip(offsets, lengths, strict=False):
        taught[start + length // 2 : start + length] = True
    tokens = np.random.default_rng(0).integers(3, vocabulary, offsets[-1], dtype=np.int32)
    counts = RowCounts(rows=len(lengths), used=len(lengths), too_long=0, without_target=0)
    return Examples(tokens, offsets, taught, np.arange(len(lengths)), counts)


def fitting(shape: Shape, settings: TrainingSettings, memory: float | None) -> Shape:
    """The shape whole if full fine-tuning of it fits, else with as many layers as the plain loop can be compared on.

    Args:
        shape: whole.
        settings: of the training.
        memory: bytes of the device; None: no limit.
    """
    if memory is None or training_memory(shape, settings, 1).total + CONTEXT_BYTES <= memory:
        return shape
    tokens = settings.micro_batch_tokens
    for layers in range(shape.layers - 1, 0, -1):
        fewer = replace(shape, layers=layers)
        states = PLAIN_BYTES * fewer.parameters
        logits = tokens * shape.vocabulary * (2 + 4 + 4)  # in bf16, in fp32, their gradient
        if states + logits + training_memory(fewer, settings, 1).activations + CONTEXT_BYTES <= memory:
            return fewer
    raise ValueError("not even one layer fits the device")


def flops_per_token(shape: Shape, lengths: Sequence[int] | np.ndarray) -> float:
    """Of forward and backward (`cft_ray.training.hardware`)."""
    sizes = np.asarray(lengths, dtype=np.float64)
    width = shape.heads * shape.head_size
    mean = float((sizes**2).sum() / sizes.sum())
    return hardware.flops_per_token(shape.parameters - shape.embedding_parameters, shape.layers, width, mean)


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget_peak() -> None:
    """Count the device's peak memory from now."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
