"""Whether training on this device is right: against a plain loop, against itself, and to the bit where bits must be equal.

    python benchmarks/gpu/correctness.py

A small model with a byte-level tokenizer, bf16 with fp32 master weights, the same rows, order and schedule everywhere. The exit
code is 1 if something does not hold. Two roundings of one training part a little: how much is measured on the plain loop itself,
with the rows of each batch in reverse order, and what is compared may differ by `NOISE` times as much (or by the floors below,
which are the bounds of the tests on a CPU).
"""

import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, as CUDA starts: matrix products can be repeated

import world
from plain import Optimisation, Plain, padded_batch

# isort: split
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cft_ray import strategies
from cft_ray.drift.heads import HeadCounts, head_slices
from cft_ray.drift.measure import measure_drift
from cft_ray.grid.settings import ScratchModel, Template, TrainingSettings
from cft_ray.models import function
from cft_ray.models.attention import PLAIN as SDPA
from cft_ray.plan.specs import StrategyRef
from cft_ray.training import attention, engine, group, model
from cft_ray.training.contract import Contract
from cft_ray.training.examples import Examples
from cft_ray.training.job import Job
from cft_ray.training.loop import train
from cft_ray.training.loss import SummedLoss
from cft_ray.training.order import SampleOrder
from cft_ray.training.probe import Probe

NOISE = 3.0
"""times the plain loop's own noise"""
MEAN, LARGEST, PARAMETERS = 3e-4, 2e-3, 0.1
"""least bounds: of a step's loss in the mean and at most, and of the parameters' distance in lengths of the way they went"""
LEARNT = 0.05
"""nats that the loss must fall, or the comparison shows nothing"""
RANK, ALPHA = 4, 8.0
TARGETS = ("q_proj", "v_proj", "down_proj")


@dataclass(frozen=True)
class Setting:
    """How large the model and the training are."""

    shape: ScratchModel
    training: TrainingSettings
    rows: int
    answer: int
    """characters of the longest"""
    frozen_layers: int

    @classmethod
    def of(cls, rehearse: bool) -> "Setting":
        """Tiny for a rehearsal, else large enough that a GPU's own kernels are used."""
        common: dict[str, Any] = {"warmup_steps": 3, "precision": "bf16", "max_grad_norm": 1.0}
        if rehearse:
            shape = ScratchModel(hidden_size=128, layers=2, heads=4, kv_heads=2, intermediate_size=96, max_positions=256)
            return cls(shape, TrainingSettings(steps=8, batch_size=8, learning_rate=4e-3, max_length=200, **common), 60, 30, 1)
        shape = ScratchModel(
            hidden_size=1024, layers=8, heads=8, kv_heads=2, intermediate_size=3584, max_positions=2048
        )  # heads of 128, as in 7B models
        return cls(shape, TrainingSettings(steps=20, batch_size=16, learning_rate=3e-4, max_length=2048, **common), 400, 400, 3)


class Checks:
    """What was compared, and whether it holds."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def at_most(self, what: str, value: float, bound: float) -> None:
        """``value`` may not be above ``bound``; what is no number does not hold."""
        self.rows.append({"what": what, "value": float(value), "at most": float(bound), "holds": bool(value <= bound)})

    def none(self, what: str, count: int, of: int) -> None:
        """``count`` of ``of`` (not zero) differ."""
        self.rows.append({"what": f"{what} ({of} looked at)", "value": count, "at most": 0, "holds": of > 0 and count == 0})

    @property
    def failed(self) -> list[str]:
        """What does not hold."""
        return [row["what"] for row in self.rows if not row["holds"]]


class Interrupted(Exception):
    """A training was stopped."""


class Bench:
    """Trainings in a folder, ours and plain ones."""

    def __init__(self, root: Path, setting: Setting) -> None:
        self.root, self.setting = root, setting
        model.create(setting.shape, 0, root / "initial")
        generator = random.Random(0)
        columns = {"system": "", "input": "", "language": "en"}
        rows = [
            {"id": str(i), "instruction": f"say {generator.randint(0, 99)}", "output": self._answer(generator), **columns}
            for i in range(setting.rows)
        ]
        pq.write_table(pa.Table.from_pylist(rows), root / "rows.parquet")

    def _answer(self, generator: random.Random) -> str:
        return generator.choice(("abc", "xyzz", "hm")) * generator.randint(1, self.setting.answer // 4) + "."

    def job(self, name: str, start: Path, *, strategy: StrategyRef | None = None, inputs: Any = None, **changes: Any) -> Job:
        """One of our trainings, not begun."""
        folder = self.root / name
        folder.mkdir()
        return Job(
            model=str(start),
            rows=str(self.root / "rows.parquet"),
            template=Template(name="plain"),
            training=self.setting.training.model_copy(update=changes),
            strategy=strategy,
            inputs=inputs or {},
            seed=1,
            output=str(folder),
            scratch=str(folder / "scratch"),
            checkpoints=str(folder / "checkpoints"),
            fingerprint="f" * 64,
        )

    def ours(self, name: str, start: Path, **settings: Any) -> tuple[Job, list[float]]:
        """Train; (job, loss of each step)."""
        job = self.job(name, start, **settings)
        summary = train(job)
        return job, summary.records["loss"].to_pylist()

    def plain(self, job: Job, *, turned: bool = False, frozen: Any = None) -> tuple[list[float], dict[str, torch.Tensor]]:
        """The same training by the plain loop; (loss of each step, weights at the end).

        Args:
            job: that has been trained: its encoded rows are used.
            turned: the rows of each batch in reverse order.
            frozen: see `Plain`.
        """
        settings, device = job.training, group.device()
        examples = Examples.load(Path(job.scratch) / "examples")
        order = SampleOrder(examples.lengths, settings, job.seed)
        causal: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16, attn_implementation="sdpa")
        lora = job.strategy is not None and job.strategy.use == "LoRA"
        if lora:
            from peft import LoraConfig, get_peft_model

            adapted = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")  # type: ignore[arg-type]
            torch.manual_seed(job.seed)
            causal = get_peft_model(causal, adapted, autocast_adapter_dtype=False)
        given = Optimisation(settings.learning_rate, settings.warmup_steps, order.steps, clip=settings.max_grad_norm or 0.0)
        loop = Plain(causal.to(device), given, frozen)
        pad_id = AutoTokenizer.from_pretrained(job.model).pad_token_id
        losses = []
        for step in range(order.steps):
            samples = order.batch(step)[:: -1 if turned else 1]
            batch, targets = padded_batch([(examples.ids(row), examples.mask(row)) for row in samples], pad_id, device)
            losses.append(loop.step(batch, targets))
        whole = causal.merge_and_unload() if lora else causal
        return losses, {name: parameter.detach().cpu() for name, parameter in whole.named_parameters()}


def weights_of(folder: Path | str) -> dict[str, torch.Tensor]:
    """Tensors of a model folder."""
    return {name: tensor for file in sorted(Path(folder).glob("*.safetensors")) for name, tensor in load_file(file).items()}


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all tensors."""
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    return sum(float((left[name].double() - right[name].double()).square().sum()) for name in left) ** 0.5


def apart(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """(mean, largest) absolute difference of the steps' losses."""
    found = [abs(a - b) for a, b in zip(left, right, strict=True)]
    return sum(found) / len(found), max(found)


def against_plain(bench: Bench, checks: Checks, name: str, job: Job, losses: list[float], frozen: Any = None) -> dict[str, Any]:
    """Compare one of our trainings with the plain loop's; returns both curves."""
    reference, end = bench.plain(job, frozen=frozen)
    turned, turned_end = bench.plain(job, turned=True, frozen=frozen)
    start = {key: tensor.to(torch.bfloat16) for key, tensor in weights_of(job.model).items()}
    way = distance(end, start)
    mean, largest = apart(losses, reference)
    noise_mean, noise_largest = apart(turned, reference)
    mine = weights_of(Path(job.output) / "model")
    checks.at_most(f"{name}: loss of a step against the plain loop, mean", mean, max(MEAN, NOISE * noise_mean))
    checks.at_most(f"{name}: loss of a step against the plain loop, largest", largest, max(LARGEST, NOISE * noise_largest))
    noise = distance(turned_end, end) / way
    checks.at_most(f"{name}: parameters against the plain loop's", distance(mine, end) / way, max(PARAMETERS, NOISE * noise))
    checks.at_most(f"{name}: least loss less the first one, plus what must be learnt", min(losses) - losses[0] + LEARNT, 0.0)
    return {"ours": losses, "plain": reference, "plain_turned": turned, "noise_of_parameters": noise}


def frozen_rows(drift: Path, shapes: dict[str, torch.Tensor], config: dict[str, Any], layers: int) -> dict[str, torch.Tensor]:
    """Query, key or value tensor -> [rows] bool: what LF_H2 freezes, found here by itself."""
    by_head: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for row in pq.read_table(drift / "heads.parquet").to_pylist():
        by_head.setdefault((row["projection"], row["head"]), []).append((-row["l2"], row["layer"]))
    chosen = {key: {layer for _, layer in sorted(found)[:layers]} for key, found in by_head.items()}
    masks = {}
    for name, tensor in shapes.items():
        mask = torch.zeros(len(tensor), dtype=torch.bool)
        heads = head_slices(name, len(tensor), HeadCounts.of(config))
        for part in heads:
            mask[part.start : part.stop] = part.layer in chosen[part.projection, part.head]
        if heads:
            masks[name] = mask
    return masks


def freezing(bench: Bench, checks: Checks, phase1: Path) -> dict[str, Any]:
    """LF_H2 from a model that was trained before."""
    drift = bench.root / "drift"
    drift.mkdir()
    found = measure_drift(phase1, bench.root / "initial")
    pq.write_table(found.heads, drift / "heads.parquet")
    pq.write_table(found.tensors, drift / "tensors.parquet")
    layers = bench.setting.frozen_layers
    freeze = strategies.reference(strategies.build("LF_H2", {"layers": layers}))
    job, losses = bench.ours("lf_h2", phase1, strategy=freeze, inputs={"drift": str(drift)})
    before, after = weights_of(phase1), weights_of(Path(job.output) / "model")
    masks = frozen_rows(drift, before, json.loads((phase1 / "config.json").read_text()), layers)
    differ = sum(int((before[name][mask] != after[name][mask]).any(-1).sum()) for name, mask in masks.items())
    checks.none("LF_H2: frozen rows that changed", differ, sum(int(mask.sum()) for mask in masks.values()))
    free = {name: ~mask for name, mask in masks.items() if not mask.all()}
    moved = sum(bool((before[name][rows] != after[name][rows]).any()) for name, rows in free.items())
    checks.none("LF_H2: tensors whose other rows did not move", len(free) - moved, len(free))
    partly = sum(bool(mask.any()) and not bool(mask.all()) for mask in masks.values())
    return {"partly_frozen_tensors": partly, **against_plain(bench, checks, "LF_H2", job, losses, masks)}


def resume(bench: Bench, checks: Checks) -> dict[str, Any]:
    """A training that is stopped and goes on, against one that is not, with torch's deterministic algorithms."""
    start, every = bench.root / "initial", 3
    at = every + 2
    with deterministic():
        once, losses = bench.ours("once", start)
        twice, again = bench.ours("twice", start)
        job = bench.job("stopped", start, checkpoint_every=every)

        def stop(row: dict[str, Any], steps: int) -> None:
            if row["step"] == at:
                raise Interrupted

        with contextlib.suppress(Interrupted):
            train(job, stop)
        summary = train(job)
    resumed = summary.records["loss"].to_pylist()
    ends = [weights_of(Path(each.output) / "model") for each in (once, twice, job)]
    checks.none("resume: steps that were not taken up from the checkpoint", abs(summary.resumed_at - every), 1)
    repeat, stopped = apart(losses, again)[1], apart(losses, resumed)[1]
    checks.at_most("resume: loss of a step, largest (0: bit-equal; else the noise of repeats)", stopped, NOISE * repeat)
    away = distance(ends[0], ends[2])
    checks.at_most("resume: distance of parameters (0: bit-equal; else the noise of repeats)", away, NOISE * distance(*ends[:2]))
    return {"repeats_are_bit_equal": repeat == 0 and distance(*ends[:2]) == 0, "uninterrupted": losses, "resumed": resumed}


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Sums in one order, where torch can; where it cannot, noise is what is measured."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def layouts(checks: Checks, trained: Path, examples: Examples) -> None:
    """Losses of tokens, samples end to end and padded, in bf16: both against fp32 by the model's own forward pass."""
    device = group.device()
    pad_id = AutoTokenizer.from_pretrained(trained).pad_token_id
    probe = Probe.of(examples, pad_id)
    single: Any = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    exact = function.own_losses(single.to(device).eval(), probe.rows)
    causal: Any = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16)
    causal.to(device).eval()
    errors = {}
    for way, name in ((function.Way("free"), attention.NAME), (function.Way("padded"), SDPA)):
        function.set_attention(causal, name)
        with torch.no_grad():
            losses = probe.of_model(causal, way)
        errors[way.padding] = float((losses.double() - exact.double()).square().mean().sqrt())
    what = "padding-free: error of a token's loss against fp32, in errors of padded rows"
    checks.at_most(what, errors["free"] / errors["padded"], 1.5)


def buffers(checks: Checks, name: str, folder: Path, examples: Examples, training: TrainingSettings) -> None:
    """The model as it is set up for training has the buffers (rotary frequencies) of a plain `from_pretrained`, to the bit."""
    pad_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    with group.joined() as (_, ranks):
        contract = Contract(str(folder), training, Probe.of(examples, pad_id))
        causal = contract.load(ranks)
        deep = engine.initialise(SummedLoss(causal, causal, contract.way).train(), contract.settings, ranks)
        contract.check_engine(deep, causal)  # losses before the first step too
        mine = dict(causal.named_buffers())
    plain = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).named_buffers())
    differ = [key for key, other in plain.items() if key not in mine or not torch.equal(mine[key].cpu(), other)]
    checks.none(f"buffers of {name} unlike from_pretrained's", len(differ), len(plain))


def scaled_llama(initial: Path, folder: Path) -> Path:
    """A Llama with scaled rotary positions, of the same weights."""
    folder.mkdir()
    for file in initial.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config.pop("sliding_window", None)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_theta": 500000.0, "original_max_position_embeddings": config["max_position_embeddings"] // 2, **scaling}
    changed = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_parameters": rope}
    (folder / "config.json").write_text(json.dumps(config | changed))
    return folder


@contextlib.contextmanager
def flash_calls() -> Iterator[list[int]]:
    """Counts how often variable-length flash attention is called."""
    calls = [0]
    real: Callable[..., Any] = attention._varlen

    def counted(*given: Any) -> Any:
        calls[0] += 1
        return real(*given)

    attention._varlen = counted
    try:
        yield calls
    finally:
        attention._varlen = real


def run(root: Path, setting: Setting) -> tuple[Checks, dict[str, Any]]:
    """Everything."""
    checks, bench, curves = Checks(), Bench(root, setting), {}
    initial = root / "initial"
    with flash_calls() as calls:
        job, losses = bench.ours("full", initial)
    examples = Examples.load(Path(job.scratch) / "examples")
    trained = Path(job.output) / "model"
    if group.device().type == "cuda":
        checks.at_most("layers and micro-batches without variable-length flash attention", float(not calls[0]), 0)
    curves["full"] = against_plain(bench, checks, "full", job, losses)
    reference, noise = curves["full"]["plain"], apart(curves["full"]["plain"], curves["full"]["plain_turned"])
    tokens = int(examples.lengths.max()) * 2
    for name, changes in (("padded", {"padding": "padded"}), ("several micro-batches", {"micro_batch_tokens": tokens})):
        _, found = bench.ours(name.replace(" ", "_"), initial, **changes)
        for other, curve in (("samples end to end in one", losses), ("the plain loop", reference)):
            mean, largest = apart(found, curve)
            checks.at_most(f"{name}: loss of a step against {other}, mean", mean, max(MEAN, NOISE * noise[0]))
            checks.at_most(f"{name}: loss of a step against {other}, largest", largest, max(LARGEST, NOISE * noise[1]))
    lora = strategies.reference(strategies.build("LoRA", {"rank": RANK, "alpha": ALPHA, "target_modules": TARGETS}))
    job, losses = bench.ours("lora", initial, strategy=lora, learning_rate=10 * setting.training.learning_rate)
    curves["LoRA"] = against_plain(bench, checks, "LoRA", job, losses)
    curves["LF_H2"] = freezing(bench, checks, trained)
    curves["resume"] = resume(bench, checks)
    layouts(checks, trained, examples)
    buffers(checks, "Mistral", initial, examples, setting.training)
    buffers(checks, "Llama with scaled positions", scaled_llama(initial, root / "llama"), examples, setting.training)
    return checks, curves


def main() -> None:
    given = world.arguments(__doc__)
    begin = time.perf_counter()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="cft-ray-gpu-") as folder:
        checks, curves = run(Path(folder), Setting.of(given.rehearse))
    world.finish("correctness", given, checks.rows, {"seconds": time.perf_counter() - begin, "curves": curves})
    if checks.failed:
        print("does not hold: " + "; ".join(checks.failed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
