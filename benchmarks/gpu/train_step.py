"""Tokens a second, share of the device's peak (MFU) and peak memory of a training step at 7 and 8 billion parameters.

    python benchmarks/gpu/train_step.py

Mistral-7B's and Llama-3-8B's shapes with random weights that are made on the device, so no file is needed. Two batches a shape:
the study's, 16 rows of Alpaca's mean length (122 tokens; its 8 GPUs had 2 rows each, one GPU has all 16), and 8,192 tokens in
4 rows of 2,048. Ours is `cft_ray.training`'s own step (padding-free, loss in chunks, fp32 master weights, fused AdamW). Beside
it run a plain loop (`plain.py`: padded rows, transformers' own loss, fp32 master weights, torch's AdamW), and TRL's
`SFTTrainer` where it is installed (its defaults; fp32 weights under bf16 autocast). All recompute activations (gradient
checkpointing).

Memory: full fine-tuning wants 16 bytes a parameter, 116 GB for 7.2 billion and 129 GB for 8.0. Where a device has less (an H100
has 80 GB), the shape is cut to as many layers as the plain loop can be compared on, and the table says how many; LoRA is measured
with all layers, whose weights take 2 bytes a parameter. Each contender runs in a process of its own; one that does not fit says
so, and one that is not begun within the budget too.
"""

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import world
from plain import Optimisation, Plain, padded_batch

# isort: split
import numpy as np
import torch

from cft_ray import strategies
from cft_ray.grid.settings import TrainingSettings
from cft_ray.models import function
from cft_ray.plan.known import Shape
from cft_ray.plan.memory import training_memory
from cft_ray.training import attention, engine, group, hardware
from cft_ray.training.examples import Examples
from cft_ray.training.loop import _Pace, _step
from cft_ray.training.loss import SummedLoss
from cft_ray.training.order import SampleOrder

CASES = (("mistral-7b", "full"), ("llama-3-8b", "full"), ("mistral-7b", "LoRA"))
WARM_UP = 3
GOAL = {"mfu": 0.5, "memory_over_estimate": 0.05}
RANK, ALPHA = 64, 128.0
START_SECONDS = 30
"""that must be left for a contender to be begun"""


@dataclass(frozen=True)
class Batch:
    """Rows of one optimizer step."""

    name: str
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """In all."""
        return sum(self.lengths)


def batches(rehearse: bool) -> tuple[Batch, ...]:
    """The study's, and the largest."""
    if rehearse:
        return Batch("study", tuple(range(8, 24, 4))), Batch("8192", (32, 32))
    study = tuple(np.linspace(44, 200, 16).astype(int).tolist())  # 122 in the mean
    return Batch("study", study), Batch("8192", (2048,) * 4)


def settings_of(batch: Batch, steps: int) -> TrainingSettings:
    """Of a training on such batches."""
    return TrainingSettings(
        steps=steps,
        batch_size=len(batch.lengths),
        learning_rate=1e-6,
        precision="bf16",
        max_length=max(batch.lengths),
        micro_batch_tokens=max(batch.tokens, len(batch.lengths) * max(batch.lengths)),  # one micro-batch, for padded rows too
        gradient_checkpointing=True,
    )


@dataclass
class Timed:
    """What a contender needed for the steps after the warm-up."""

    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    peak_bytes: int = 0

    @classmethod
    def of(cls, count: int, tokens: int, step: Callable[[int], float]) -> "Timed":
        """Call ``step`` (which waits for the device and returns the loss) for warm-up and ``count`` times more."""
        for number in range(WARM_UP):
            step(number)
        world.forget_peak()
        begin = time.perf_counter()
        loss = [step(WARM_UP + number) for number in range(count)][-1]
        world.synchronise()
        return cls(tokens * count, time.perf_counter() - begin, loss, hardware.peak_memory(group.device()))


def ours(given: argparse.Namespace, shape: Shape) -> Iterator[tuple[str, Timed]]:
    """The step of `cft_ray.training.loop`."""
    with group.joined() as (_, ranks):
        causal = world.random_model(given.model, shape, dtype=torch.bfloat16)
        refused = function.set_attention(causal, attention.NAME)
        assert refused is None, refused
        causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        causal.enable_input_require_grads()
        prepared: torch.nn.Module = causal
        if given.method == "LoRA":
            prepared = strategies.build("LoRA", {"rank": RANK, "alpha": ALPHA}).prepare(causal, {}, 0)
        some = settings_of(batches(given.rehearse)[0], WARM_UP + given.steps)
        deep = engine.initialise(SummedLoss(prepared, causal).train(), some, ranks)
        for batch in batches(given.rehearse):
            settings = settings_of(batch, WARM_UP + given.steps)
            examples, order = _rows(batch, settings, shape)
            pace = _Pace(causal, examples, shape.parameters, ranks)
            yield batch.name, Timed.of(given.steps, batch.tokens, _ours(deep, examples, order, settings, pace))


def _ours(
    deep: engine.Engine, examples: Examples, order: SampleOrder, settings: TrainingSettings, pace: _Pace
) -> Callable[[int], float]:
    return lambda number: _step(deep, examples, order, settings, number, 0, pace)["loss"]


def plain(given: argparse.Namespace, shape: Shape) -> Iterator[tuple[str, Timed]]:
    """The plain loop."""
    causal: Any = world.random_model(given.model, shape, dtype=torch.bfloat16)
    causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    causal = _adapted(causal) if given.method == "LoRA" else causal
    loop = Plain(causal, Optimisation(1e-6, 10, 2 * (WARM_UP + given.steps)))
    for batch in batches(given.rehearse):
        examples, order = _rows(batch, settings_of(batch, WARM_UP + given.steps), shape)

        def step(number: int, examples: Examples = examples, order: SampleOrder = order) -> float:
            rows = [(examples.ids(row), examples.mask(row)) for row in order.batch(number)]
            return loop.step(*padded_batch(rows, 0, group.device()))

        yield batch.name, Timed.of(given.steps, batch.tokens, step)


def trl(given: argparse.Namespace, shape: Shape) -> Iterator[tuple[str, Timed]]:
    """TRL's `SFTTrainer`."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from cft_ray.training.model import byte_tokenizer

    lora = given.method == "LoRA"
    causal: Any = world.random_model(given.model, shape, dtype=torch.bfloat16 if lora else torch.float32)
    causal = _adapted(causal) if lora else causal
    cpu = group.device().type == "cpu"
    for batch in batches(given.rehearse):
        steps = WARM_UP + given.steps
        examples, order = _rows(batch, settings_of(batch, steps), shape)
        rows = [
            {"input_ids": examples.ids(row).tolist(), "completion_mask": examples.mask(row).astype(int).tolist()}
            for step in range(steps)
            for row in order.batch(step)
        ]
        timed = Timed()

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, timed: Timed = timed, **_: Any) -> None:
                if state.global_step == WARM_UP:
                    world.forget_peak()
                    timed.seconds = -time.perf_counter()
                if state.global_step == WARM_UP + given.steps:
                    world.synchronise()
                    timed.seconds += time.perf_counter()
                    timed.peak_bytes = hardware.peak_memory(group.device())

        with tempfile.TemporaryDirectory() as folder:
            configured = SFTConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=len(batch.lengths),
                learning_rate=1e-6,
                max_length=None,
                gradient_checkpointing=True,
                bf16=True,
                use_cpu=cpu,
                optim="adamw_torch_fused",
                completion_only_loss=True,
                logging_steps=10**6,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = SFTTrainer(
                model=causal,
                args=configured,
                train_dataset=Dataset.from_list(rows),
                processing_class=byte_tokenizer(world.POSITIONS),
                callbacks=[Clock()],
            )
            timed.loss = float(trainer.train().training_loss)
        del trainer
        gc.collect()
        timed.tokens = batch.tokens * given.steps
        yield batch.name, timed


CONTENDERS: dict[str, Callable[[argparse.Namespace, Shape], Iterator[tuple[str, Timed]]]] = {
    "ours": ours,
    "plain": plain,
    "trl": trl,
}


def _rows(batch: Batch, settings: TrainingSettings, shape: Shape) -> tuple[Examples, SampleOrder]:
    examples = world.random_examples(batch.lengths * 2, shape.vocabulary)
    # In their order: a step then has the batch's very lengths, whatever the seed.
    return examples, _InOrder(examples.lengths, settings, 0)


class _InOrder(SampleOrder):
    def batch(self, step: int) -> list[int]:
        """Both halves of the rows in turn."""
        size = self.settings.batch_size
        return list(range(step % 2 * size, (step % 2 + 1) * size))


def _adapted(causal: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    modules = list(strategies.build("LoRA", {}).model_dump()["target_modules"])
    causal.enable_input_require_grads()
    made = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=modules, task_type="CAUSAL_LM")  # type: ignore[arg-type]
    return get_peft_model(causal, made, autocast_adapter_dtype=False)


def contend(given: argparse.Namespace) -> None:
    """Run one contender in this process; each line printed after the mark is a batch's figures."""
    shape = Shape(**json.loads(given.shape))
    try:
        for name, timed in CONTENDERS[given.contender](given, shape):
            print(json.dumps({"batch": name, **asdict(timed)}), flush=True)
    except torch.OutOfMemoryError:
        print(json.dumps({"problem": "out of memory"}))


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def measure(given: argparse.Namespace, name: str, method: str, shape: Shape, contender: str, left: float) -> list[dict[str, Any]]:
    """A contender in a process of its own: what it printed."""
    if contender == "trl" and not all(map(_installed, ("trl", "datasets", "accelerate"))):
        return [{"problem": "not installed"}]
    if left < START_SECONDS:
        return [{"problem": "not begun: the budget is spent"}]
    command = [sys.executable, __file__, "--contender", contender, "--model", name, "--method", method]
    command += ["--shape", json.dumps(asdict(shape)), "--steps", str(given.steps), *(["--rehearse"] if given.rehearse else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=left)
    except subprocess.TimeoutExpired as late:
        output, problem = late.stdout or b"", "stopped: the budget is spent"
        text = output.decode() if isinstance(output, bytes) else output
    else:
        text, problem = (
            done.stdout,
            None if done.returncode == 0 else f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}",
        )
        if done.returncode:
            print(done.stderr[-3000:], file=sys.stderr)
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return found + ([{"problem": problem}] if problem else [])


def row_of(
    name: str, method: str, shape: Shape, contender: str, found: dict[str, Any], by_name: dict[str, Batch]
) -> dict[str, Any]:
    """A row of the table."""
    whole = world.MODELS[name].layers
    layers = str(shape.layers) if shape.layers == whole else f"{shape.layers} of {whole}"
    row: dict[str, Any] = {"model": name, "layers": layers, "method": method, "contender": contender}
    if "problem" in found:
        return {**row, "batch": found["problem"]}
    batch = by_name[found["batch"]]
    speed = found["tokens"] / found["seconds"]
    peak = world.device()["peak_bf16_flops"]
    full = method == "full"
    estimate = training_memory(shape, settings_of(batch, 1), 1).total if full and contender == "ours" else None
    return {
        **row,
        "batch": batch.name,
        "tokens/s": speed,
        # Frozen weights have no gradients, so the formula for all parameters would flatter LoRA.
        "mfu": speed * world.flops_per_token(shape, batch.lengths) / peak if peak and full else None,
        "peak GB": found["peak_bytes"] / 1e9,
        "estimate GB": estimate and estimate / 1e9,
        "over estimate": estimate and found["peak_bytes"] / estimate - 1,
        "loss": found["loss"],
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--steps", type=int, default=10, help=f"timed, after {WARM_UP} that are not")
        parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
        parser.add_argument("--model", help=argparse.SUPPRESS)
        parser.add_argument("--method", help=argparse.SUPPRESS)
        parser.add_argument("--shape", help=argparse.SUPPRESS)

    given = world.arguments(__doc__, add)
    if given.contender:
        contend(given)
        return
    begin = time.perf_counter()
    by_name = {batch.name: batch for batch in batches(given.rehearse)}
    rows = []
    memory = world.device()["memory_bytes"]
    for name, method in CASES if not given.rehearse else (CASES[0], CASES[2]):
        whole = world.TINY if given.rehearse else world.MODELS[name]
        largest = settings_of(by_name["8192"], 1)
        shape = world.fitting(whole, largest, memory) if method == "full" else whole
        for contender in CONTENDERS:
            left = given.budget - (time.perf_counter() - begin)
            found = measure(given, name, method, shape, contender, left)
            rows += [row_of(name, method, shape, contender, each, by_name) for each in found]
            print(world.table(rows[-len(found) :]), flush=True)
    world.finish("train_step", given, rows, {"seconds": time.perf_counter() - begin, "goals": GOAL, "steps": given.steps})


if __name__ == "__main__":
    main()
