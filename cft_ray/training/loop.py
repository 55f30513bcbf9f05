"""The training loop. An optimizer step is a function of the global batch alone.

The loss is the sum over target tokens, divided by the number of target tokens of the global batch over all ranks and
micro-batches. That number is known to every rank beforehand, since each knows the whole order; one number, the loss, is
all that the ranks exchange beside gradients.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import distributed
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cft_ray.data.accounts import RowAccount, refuse_lost
from cft_ray.data.chat_form import chat_form
from cft_ray.data.encoding import Encoder
from cft_ray.errors import StageFailed, UserError
from cft_ray.models.card import card
from cft_ray.models.limits import in_folder, positions_in
from cft_ray.strategies.base import Strategy
from cft_ray.training import engine, export, group, hardware, loggers
from cft_ray.training.checkpoint import Checkpoints, Progress
from cft_ray.training.collate import MicroBatch, collate
from cft_ray.training.contract import Contract
from cft_ray.training.examples import Examples, RowCounts, encode, encoding_key
from cft_ray.training.job import Job
from cft_ray.training.loss import SummedLoss
from cft_ray.training.order import SampleOrder, deal
from cft_ray.training.probe import Probe
from cft_ray.training.records import StepRecords
from cft_ray.training.schedule import learning_rate

OnStep = Callable[[dict[str, Any], int], None]
"""(step row, steps of the whole training); called on rank 0 after each optimizer step"""


@dataclass(frozen=True)
class Summary:
    """What a training came to; the same on every rank."""

    steps: int
    tokens: int
    samples: int
    counts: RowCounts
    loss_first: float
    loss_last: float
    trainable_fraction: float
    facts: dict[str, Any]
    records: pa.Table
    """of the steps, with the columns of the table ``steps``"""
    resumed_at: int
    """steps that had been done before this process began"""
    notes: tuple[str, ...]
    """what was done otherwise than asked for because of the model"""


def train(job: Job, on_step: OnStep | None = None, prove: Callable[[], None] = lambda: None) -> Summary:
    """Train, from the newest checkpoint if there is one, and export; every rank calls it.

    Args:
        job: the same on every rank.
        on_step: called on rank 0.
        prove: called before mid-run state is written; raises where another attempt has taken over.

    Raises:
        UserError: the rows, the model or the settings cannot be trained with (on every rank alike).
        StageFailed: the loss is not finite, or the exported files are wrong (on every rank alike).
    """
    device = group.device()
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        group.joined() as (rank, ranks),
        ExitStack() as leaving,
    ):
        return _train(job, on_step, prove, rank, ranks, leaving)


def _train(job: Job, on_step: OnStep | None, prove: Callable[[], None], rank: int, ranks: int, leaving: ExitStack) -> Summary:
    settings = job.training
    listeners = _listeners(job, rank)  # first: what is missing is known before a model is loaded
    tokenizer = AutoTokenizer.from_pretrained(job.model, local_files_only=True)
    examples = _examples(job, tokenizer)
    order = SampleOrder(examples.lengths, settings, job.seed)
    torch.manual_seed(job.seed)

    leaving.enter_context(engine.ready(settings, ranks))
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    contract = Contract(job.model, settings, Probe.of(examples, pad_id))
    contract.check_limits(examples)
    causal = contract.load(ranks)
    settings = contract.settings  # samples are padded where the model cannot be run with them end to end
    if settings.gradient_checkpointing:
        causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        causal.enable_input_require_grads()
    strategy = _strategy(job)
    whole = _numbers(causal)
    prepared = strategy.prepare(causal, {role: Path(path) for role, path in job.inputs.items()}, job.seed)
    facts = strategy.facts(prepared)
    encoder = Encoder(tokenizer, job.template)
    form = chat_form(tokenizer, encoder)
    contract.save_side_files(causal, form, card(form, encoder, job.label), Path(job.scratch) / "side")
    module = SummedLoss(prepared, causal, contract.way).train()
    deep = leaving.enter_context(closing(engine.initialise(module, settings, ranks)))
    contract.check_engine(deep, causal)
    trained = sum(_size(parameter) for parameter in prepared.parameters() if parameter.requires_grad)

    checkpoints = Checkpoints(job.checkpoints, Path(job.scratch) / "shards", job.attempt, prove)
    progress = checkpoints.resume(deep, job.fingerprint)
    if progress is None:
        progress = Progress(step=0, tokens=0, samples=0, records=StepRecords(), identity=job.fingerprint)
    resumed_at = progress.step

    pace = _Pace(causal, examples, whole, ranks)
    for step in range(progress.step, order.steps):
        row = _step(deep, examples, order, settings, step, pad_id, pace)
        progress.records.append(row)
        tokens, samples = progress.tokens + row["tokens"], progress.samples + row["samples"]
        progress = replace(progress, step=step + 1, tokens=tokens, samples=samples)
        if rank == 0:
            for listener in listeners:
                listener(row)
            if on_step:
                on_step(row, order.steps)
        if settings.checkpoint_every and progress.step % settings.checkpoint_every == 0 and progress.step < order.steps:
            checkpoints.save(deep, progress)
            pace.restart()

    records = progress.records.table()
    losses = records["loss"]
    output = Path(job.output)
    comes_back = contract.last_losses(deep)
    export.write(strategy.exported(prepared), causal, contract.side_files, output / "model", check=comes_back)
    if rank == 0:
        (output / "tables").mkdir(parents=True, exist_ok=True)
        pq.write_table(records, output / "tables" / "steps.parquet")
    distributed.barrier()
    return Summary(
        steps=order.steps,
        tokens=progress.tokens,
        samples=progress.samples,
        counts=examples.counts,
        loss_first=losses[0].as_py(),
        loss_last=losses[-1].as_py(),
        trainable_fraction=trained / whole,
        facts=facts,
        records=records,
        resumed_at=resumed_at,
        notes=tuple(contract.notes),
    )


def _step(
    deep: engine.Engine, examples: Examples, order: SampleOrder, settings: Any, step: int, pad_id: int, pace: "_Pace"
) -> dict[str, Any]:
    """One optimizer step; its record."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    samples = order.batch(step)
    lengths = examples.lengths[samples].tolist()
    targets = int(examples.targets[samples].sum())
    mine = deal(lengths, ranks, settings.micro_batch_tokens, padded=settings.padding == "padded")[rank]
    lr = learning_rate(settings, step, order.steps)
    total = torch.zeros((), dtype=torch.float64, device=deep.device)
    for places in mine:
        batch: MicroBatch = collate(examples, [samples[place] for place in places], padding=settings.padding, pad_id=pad_id)
        loss = deep(batch.to(deep.device)) / targets
        deep.backward(loss)
        total += loss.detach()
    distributed.all_reduce(total)
    if not math.isfinite(value := float(total)):
        raise StageFailed(f"the loss of step {step + 1} is {value}: lower training.learning_rate, or look at the rows")
    norm = deep.step(lr)
    if not math.isfinite(norm):  # so are the weights now
        raise StageFailed(f"the gradients of step {step + 1} are no numbers: lower training.learning_rate, or look at the rows")
    tokens = sum(lengths)
    return {
        "step": step + 1,
        "epoch": order.epoch(step),
        "loss": value,
        "lr": lr,
        "grad_norm": norm,
        "tokens": tokens,
        "target_tokens": targets,
        "samples": len(samples),
        **pace.lap(tokens),
    }


class _Pace:
    """Speed and memory of each step."""

    def __init__(self, causal: PreTrainedModel, examples: Examples, parameters: int, ranks: int) -> None:
        device = group.device()
        embedding = causal.get_input_embeddings().weight
        config = causal.config.get_text_config()
        lengths = examples.lengths.astype(np.float64)
        self._device = device
        self._flops = hardware.flops_per_token(
            parameters - _size(embedding), config.num_hidden_layers, config.hidden_size, float((lengths**2).sum() / lengths.sum())
        )
        self._peak = hardware.peak_flops(device) * ranks
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._since = time.perf_counter()

    def lap(self, tokens: int) -> dict[str, Any]:
        """Columns of the step that ends now."""
        now = time.perf_counter()
        seconds = now - self._since
        self._since = now
        speed = tokens / seconds
        return {
            "seconds": seconds,
            "tokens_per_s": speed,
            "mfu": speed * self._flops / self._peak if self._peak else 0.0,
            "peak_memory": hardware.peak_memory(self._device),
        }


def _examples(job: Job, tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Encoded rows: one rank of each machine encodes, unless an attempt before it has; the others map what it wrote."""
    folder = Path(job.scratch) / "examples"
    positions = positions_in(in_folder(job.model))
    problem: UserError | StageFailed | None = None
    if group.is_first_of_machine():
        try:
            key = encoding_key(Path(job.rows), job.template, tokenizer, job.training, positions)
            if (examples := Examples.kept(folder, key)) is None:
                rows = pq.read_table(job.rows)
                examples = encode(rows, job.template, tokenizer, job.training, where=job.rows, positions=positions)
                examples.save(folder, key)
            _refuse_lost(job, examples.counts.account(job.training).checked(job.label), job.training.longest(positions))
        except (UserError, StageFailed) as error:
            problem = error
    if found := group.first_problem(problem):
        raise found
    return Examples.load(folder)


def _listeners(job: Job, rank: int) -> list[loggers.StepLogger]:
    """The loggers, on rank 0; if they cannot be opened every rank raises it."""
    built: list[loggers.StepLogger] = []
    outcome: list[UserError | None] = [None]
    if rank == 0:
        try:
            built = loggers.build(job.loggers, job.fingerprint or Path(job.output).name)
        except UserError as error:
            outcome = [error]
    if job.loggers:
        distributed.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise outcome[0]
    return built


def _refuse_lost(job: Job, account: RowAccount, longest: int) -> None:
    setting = f"datasets.{job.data}.allow_left_out" if job.data else "allow_left_out"
    refuse_lost(
        account,
        job.allow_left_out,
        what=job.label,
        where=f"training.max_length {longest}",
        setting=setting,
        fix="raise training.max_length, set training.long_rows to truncate",
    )


def _strategy(job: Job) -> Strategy:
    if job.strategy is None:
        return Strategy()
    from cft_ray.strategies import load

    return load(job.strategy)


def _size(parameter: Any) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())


def _numbers(module: torch.nn.Module) -> int:
    return sum(_size(parameter) for parameter in module.parameters())
