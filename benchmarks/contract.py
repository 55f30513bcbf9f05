"""What the checks of a model cost: before the first step, beside 1,000 steps, and as an estimate at 7 billion parameters.

    python benchmarks/contract.py

**Measured**, in fp32 on one thread of this machine, each size in a process of its own: the processor seconds of everything that
a training does for `cft_ray.training.contract` before its first step (reading the model once, which any training does, is not
among them), those of its steps, those of comparing the exported model, and how many tokens pass the model's layers.
Processor seconds, because a machine that is busy with something else stretches all others. 1,000 steps are the median step
times 1,000. Comparing weights with their files, the limits and the side files are measured once more at the sizes that 7
billion parameters bring: models of up to two gigabytes in bf16, and a tokenizer of 128,000 tokens.

**Computed**: 7 billion parameters on one H100, which is not here. The seconds a gigabyte of the weights, as measured on one
thread; the tokens that pass the layers, as counted (they depend on the rows, not on the model), at 2 FLOP a parameter and token
and the share of the card's peak that is assumed; the limits and side files, as measured.
"""

import argparse
import copy
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from record import ROOT, record

ALPACA = ROOT.parent / "shared" / "data" / "alpaca" / "train.parquet"
STEPS_COMPARED = 1_000
STEPS, BATCH = 6, 8
GOAL_SHARE, GOAL_SECONDS = 0.02, 60.0
SMOKE = "smoke"
SIZES: dict[str, dict[str, Any]] = {
    SMOKE: {"hidden_size": 128, "layers": 4, "heads": 4, "kv_heads": 2, "intermediate_size": 256},
    "5M": {"hidden_size": 256, "layers": 6, "heads": 8, "kv_heads": 4, "intermediate_size": 768},
    "20M": {"hidden_size": 512, "layers": 8, "heads": 8, "kv_heads": 4, "intermediate_size": 1280},
}
"""of models that are trained; the first is the smoke grid's, with its rows and batch"""
WEIGHTS = {"0.3B": (1024, 16), "1.1B": (2048, 18)}
"""hidden size and layers of models that are only loaded"""
SEVEN = {"parameters": 7.24e9, "bytes": 14.5e9}
"""Mistral 7B in bf16"""
H100 = {"peak_flops": 989e12, "share_of_peak": 0.1, "read_bytes_per_s": 2e9}
"""bf16, dense; short forward passes of one row reach less of it than a training; what an NVMe disk reads"""
PARTS = ("limits", "weights", "function", "form", "side_files", "engine")


def rows_of(count: int, alpaca: Path) -> pa.Table:
    """Canonical rows: real ones, or where there are none, of like lengths."""
    generator = random.Random(0)
    if alpaca.exists():
        table = pq.read_table(alpaca)
        given = table.take(generator.sample(range(table.num_rows), count)).to_pylist()
        asked = [(f"{row['instruction']}\n{row['input']}", row["output"]) for row in given]
    else:
        asked = [("x" * generator.randint(20, 120), "y" * generator.randint(20, 800)) for _ in range(count)]
    constant = {"language": "en", "system": "", "input": ""}
    return pa.Table.from_pylist(
        [{"id": str(i), "instruction": ask, "output": answer, **constant} for i, (ask, answer) in enumerate(asked)]
    )


class Spans:
    """Processor seconds in functions, and tokens that pass a model's first layer, by part; what is measured keeps its results."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.tokens: Counter[str] = Counter()
        self.passes: Counter[str] = Counter()
        self._open: list[str] = []

    def around(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The same function, whose calls are counted."""

        def timed(*given: Any, **named: Any) -> Any:
            begin = time.process_time()
            self._open.append(part)
            try:
                return call(*given, **named)
            finally:
                self._open.pop()
                self.seconds[part] += time.process_time() - begin

        return timed

    def count(self, module: Any, given: tuple[Any, ...]) -> None:
        """Forward pre-hook of every module."""
        if type(module).__name__.endswith("DecoderLayer") and module.self_attn.layer_idx == 0:
            part = self._open[-1] if self._open else "steps"
            self.tokens[part] += given[0].shape[0] * given[0].shape[1]
            self.passes[part] += 1


def training(folder: Path) -> dict[str, Any]:
    """Train; what torch makes on its first use is in the seconds."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    from cft_ray.models import function, loading
    from cft_ray.training import loop
    from cft_ray.training.contract import Contract
    from cft_ray.training.job import Job

    spans = Spans()
    timed = [
        (Contract, "check_limits", "limits"),
        (loading, "check_weights", "weights"),
        (function, "choose", "function"),
        (loop, "chat_form", "form"),
        (Contract, "save_side_files", "side_files"),
        (Contract, "check_engine", "engine"),
    ]
    for owner, name, part in timed:
        setattr(owner, name, spans.around(getattr(owner, name), part))
    last = Contract.last_losses
    setattr(Contract, "last_losses", lambda *given: spans.around(spans.around(last, "last_losses")(*given), "reload"))  # noqa: B010
    hook = register_module_forward_pre_hook(spans.count)
    before: list[Spans] = []
    tokens: list[int] = []
    ticks: list[float] = []

    def on_step(row: dict[str, Any], steps: int) -> None:
        if not ticks:
            before.append(copy.deepcopy(spans))
        tokens.append(row["tokens"])
        ticks.append(time.process_time())

    place = {name: str(folder / name) for name in ("output", "scratch", "checkpoints")}
    loop.train(Job.read(folder / "job.json").model_copy(update=place), on_step)
    hook.remove()
    (at,) = before
    seconds = {part: round(at.seconds[part], 4) for part in PARTS}
    passed = sum(at.tokens[part] for part in PARTS)
    step = statistics.median(after - at for at, after in itertools.pairwise(ticks))
    a_step = statistics.mean(tokens)
    return {
        "seconds": seconds,
        "seconds_before_first_step": round(sum(seconds.values()), 4),
        "seconds_after_last_step": {part: round(spans.seconds[part], 4) for part in ("last_losses", "reload")},
        "tokens_through_layers": passed,
        "passes_through_layers": sum(at.passes[part] for part in PARTS),
        "step_seconds_median": round(step, 5),
        "steps_measured": len(ticks) - 1,
        "tokens_a_step": a_step,
        "share_of_1000_steps": round(sum(seconds.values()) / (STEPS_COMPARED * step), 6),
        # A step's backward pass costs two forward ones.
        "share_of_1000_steps_by_tokens": round(passed / 3 / (STEPS_COMPARED * a_step), 6),
    }


def weights(folder: Path) -> dict[str, Any]:
    """Load a model twice; the second time its files are in memory."""
    import torch

    from cft_ray.models import loading

    found = {}
    for _ in range(2):
        spans = Spans()
        compare = loading.check_weights
        loading.check_weights = spans.around(compare, "weights")
        begin = time.process_time()
        model = loading.load(str(folder), dtype=torch.bfloat16)
        whole = time.process_time() - begin
        loading.check_weights = compare
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        found = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "gigabytes": size / 1e9,
            "check_processor_seconds": spans.seconds["weights"],
            "check_seconds_a_gigabyte": spans.seconds["weights"] / size * 1e9,
            "load_seconds_without_it": whole - spans.seconds["weights"],
        }
        del model
    return found


def make_weights(hidden: int, layers: int, folder: Path) -> None:
    """A Llama in bf16 in several files."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from cft_ray.training.model import byte_tokenizer

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=int(3.5 * hidden),
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype) - 0.5
    model.save_pretrained(folder, max_shard_size="500MB")
    byte_tokenizer(512).save_pretrained(folder)


def large_tokenizer(folder: Path, tokens: int = 128_000) -> None:
    """A byte-level tokenizer of as many tokens as today's models have, and a model for it."""
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from cft_ray.training.model import byte_tokenizer

    small = byte_tokenizer(512)
    state = json.loads(small.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = state["model"]["vocab"]
    alphabet = [token for token in vocabulary if len(token) == 1]
    merges = [[left, right] for left in alphabet for right in alphabet]
    merges += [[left + right, third] for left, right in merges[:500] for third in alphabet]
    for left, right in merges[: tokens - len(vocabulary)]:
        vocabulary.setdefault(left + right, len(vocabulary))
    state["model"]["merges"] = merges[: tokens - len(state["added_tokens"]) - len(alphabet)]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=small.bos_token,
        eos_token=small.eos_token,
        pad_token=small.pad_token,
        chat_template=small.chat_template,
    )
    made.save_pretrained(folder)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {name: getattr(made, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(made), **shape, **ends)).save_pretrained(folder)


def measure(what: str, folder: Path) -> dict[str, Any]:
    """In a process of its own; the last line that it prints is its figures."""
    command = [sys.executable, __file__, "--measure", what, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    print(what, folder.name, json.dumps(figures), flush=True)
    return figures


def at_seven(passed: float, per_gigabyte: float, files: dict[str, float]) -> dict[str, Any]:
    """An estimate, part by part, in seconds."""
    parts = {
        "weights": per_gigabyte * SEVEN["bytes"] / 1e9,
        "weights_read_again_if_not_in_memory": SEVEN["bytes"] / H100["read_bytes_per_s"],
        "function_and_engine": 2 * SEVEN["parameters"] * passed / (H100["peak_flops"] * H100["share_of_peak"]),
        **files,
    }
    whole = sum(parts.values())
    return {
        "computed_not_measured": True,
        "assumed": {**SEVEN, **H100, "tokens_through_layers": passed, "weights": "seconds a gigabyte, limits and files: as here"},
        "seconds": {part: round(value, 2) for part, value in parts.items()},
        "seconds_in_all": round(whole, 1),
        "goal_seconds": GOAL_SECONDS,
        "to_goal": round(whole / GOAL_SECONDS, 3),
    }


def job(folder: Path, model: Path, rows: pa.Table, steps: int, batch: int, template: str) -> Path:
    """A folder that `training` reads."""
    from cft_ray.grid.settings import Template, TrainingSettings
    from cft_ray.training.job import Job

    folder.mkdir()
    pq.write_table(rows, folder / "rows.parquet")
    settings = TrainingSettings(
        learning_rate=1e-4, steps=steps, batch_size=batch, precision="fp32", max_length=512, long_rows="truncate"
    )
    Job(
        model=str(model),
        rows=str(folder / "rows.parquet"),
        template=Template.model_validate({"name": template}),
        training=settings,
        output="",
        scratch="",
        checkpoints="",
    ).write(folder / "job.json")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS))
    parser.add_argument("--alpaca", type=Path, default=ALPACA, help="Parquet file with instruction, input, output")
    parser.add_argument("--measure", choices=["training", "weights"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.measure:
        print(json.dumps({"training": training, "weights": weights}[settings.measure](settings.folder)))
        return

    from cft_ray.data.toy import generate
    from cft_ray.grid.settings import ScratchModel
    from cft_ray.training.model import create

    trained, loaded = {}, {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        toy = pa.Table.from_pylist(list(generate("instruct", "en", 640)))
        rows = rows_of(STEPS * BATCH, settings.alpaca)
        for size in settings.sizes:
            model = create(ScratchModel(**SIZES[size], max_positions=512), 0, root / f"{size} model")
            if size == SMOKE:
                folder = job(root / size, model, toy, 20, 32, "toy")
            else:
                folder = job(root / size, model, rows, STEPS, BATCH, "alpaca")
            trained[size] = measure("training", folder)
        large_tokenizer(root / "tokenizer model")
        folder = job(root / "tokenizer", root / "tokenizer model", toy, 2, 2, "alpaca")
        tokenizer = measure("training", folder)["seconds"]
        for size in settings.weights:
            make_weights(*WEIGHTS[size], root / f"{size} weights")
            loaded[size] = measure("weights", root / f"{size} weights")
    largest = trained[settings.sizes[-1]]
    figures = {
        "measured": {
            "trainings": trained,
            "tokenizer_of_128000_seconds": tokenizer,
            "weights": loaded,
            "largest_share_of_1000_steps": max(each["share_of_1000_steps"] for each in trained.values()),
            "goal_share": GOAL_SHARE,
        },
        "seven_billion_on_one_h100": at_seven(
            largest["tokens_through_layers"],
            loaded[settings.weights[-1]]["check_seconds_a_gigabyte"],
            {part: tokenizer[part] for part in ("limits", "form", "side_files")},
        ),
    }
    print(record("contract", "python benchmarks/contract.py", figures), json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
