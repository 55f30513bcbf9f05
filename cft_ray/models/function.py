"""The same function: what a training computes is what the model computes by itself, seen on a few real rows.

A training calls a model's parts (decoder, head) with attention of its own and samples laid end to end. For some
architectures that is another function than their own forward pass: state-space layers run on into the next sample, ALiBi
counts from the first token, a layer has attention of its own, something happens after the head. So each way of running
the model is tried, the cheapest first, and the first one whose losses are those of the model's own forward pass, row by
row with eager attention, is taken.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from cft_ray.errors import UserError
from cft_ray.models.attention import EAGER, PLAIN
from cft_ray.models.config import positions
from cft_ray.models.finite import not_finite
from cft_ray.models.limits import within


@dataclass(frozen=True)
class Row:
    """A row that losses are compared on.

    Args:
        ids: [tokens] token ids.
        predictors: [targets] positions that predict a target.
        labels: [targets] token ids to predict.
    """

    ids: torch.Tensor
    predictors: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Way:
    """How a training runs a model.

    Args:
        padding: ``free``: samples laid end to end; ``padded``: one a row.
        head: ``chunked``: applied apart, a chunk of positions at a time; ``own``: inside the model's forward pass.
    """

    padding: Literal["free", "padded"] = "free"
    head: Literal["chunked", "own"] = "chunked"

    def __str__(self) -> str:
        return f"samples {'end to end' if self.padding == 'free' else 'padded'}, {self.head} head"


@dataclass(frozen=True)
class Choice:
    """How a model is run, as `choose` found it to be right.

    Args:
        way: of the training.
        attention: transformers' name of it.
        notes: why cheaper ones were not taken.
        losses: [targets] the model's own, on the CPU.
    """

    way: Way
    attention: str
    notes: tuple[str, ...]
    losses: torch.Tensor


Losses = Callable[[PreTrainedModel, Way], torch.Tensor]
"""[targets] the loss of each target of the rows, as a training computes it, rows in their order"""


def choose(
    causal: PreTrainedModel,
    rows: Sequence[Row],
    losses: Losses,
    *,
    padding: Literal["free", "padded"],
    attention: Callable[[Way], Sequence[str]],
    where: str,
) -> Choice:
    """The cheapest way of running a model that computes the model's own function.

    Args:
        causal: whole, on the device; comes back in the attention of the way, in evaluation mode.
        rows: what is compared on.
        losses: of a training.
        padding: what the settings ask for; padded is tried after free, not the other way round.
        attention: transformers' names of the attentions of a way, the cheapest first.
        where: the model, for messages.

    Raises:
        UserError: there is none.
    """
    causal.eval()
    expected = own_losses(causal, rows)
    if not bool(torch.isfinite(expected).all()):
        raise not_finite(where)
    if _sees_ahead(causal, rows):
        raise UserError(
            f"{type(causal).__name__} predicts a token from what comes after it, so it cannot be trained as a language model",
            where=where,
            fix="use a model that was made to generate text; is_decoder: true in config.json makes some into such",
        )
    ways = [Way("free"), Way("padded"), Way("padded", "own")]
    notes: list[str] = []
    for way in ways[padding == "padded" :]:
        reasons: list[str] = []
        for name in attention(way):
            reason = _unlike(causal, way, losses, expected, name)
            if reason is None:
                slower = [f"{type(causal).__name__} is trained with {name} attention: {reasons[0]}"] if reasons else []
                return Choice(way, name, (*notes, *slower), expected.cpu())
            reasons.append(reason)
        notes.append(f"{type(causal).__name__} cannot be trained with {way}: {reasons[0]}")
    raise UserError(
        f"{type(causal).__name__} cannot be trained rightly: {'; '.join(note.partition('with ')[2] for note in notes)}",
        where=where,
        fix="use another architecture (docs/models.md lists those that are checked)",
    )


def own_losses(causal: PreTrainedModel, rows: Sequence[Row]) -> torch.Tensor:
    """[targets] losses in nats by the model's own forward pass: each row alone, eager attention, the whole head.

    Args:
        causal: whole, on its device; its mode and attention are as before afterwards.
        rows: what losses are wanted of.
    """
    found = []
    was = causal.training
    causal.eval()
    with torch.inference_mode(), _attention(causal, EAGER):
        for row in rows:
            logits = causal(input_ids=row.ids[None].to(causal.device), **uncached(causal)).logits[0]
            predicted = logits.index_select(0, row.predictors.to(logits.device)).float()
            found.append(torch.nn.functional.cross_entropy(predicted, row.labels.to(logits.device), reduction="none"))
    causal.train(was)
    return torch.cat(found)


def _sees_ahead(causal: PreTrainedModel, rows: Sequence[Row]) -> bool:
    """Whether the longest row's second half, turned round, changes what its first half is predicted by."""
    row = max(rows, key=lambda each: len(each.ids))
    half = len(row.ids) // 2
    if half < 2:
        return False
    turned = torch.cat([row.ids[:half], row.ids[half:].flip(0)])
    first = [Row(ids, torch.arange(half - 1), row.ids[1:half]) for ids in (row.ids, turned)]
    before, after = (own_losses(causal, [each]) for each in first)
    return difference(after, before, causal.dtype) is not None


def difference(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> str | None:
    """In words how two computations of the same losses differ, if by more than the noise of the type of the weights.

    Args:
        found: [targets] nats.
        expected: [targets] nats.
        dtype: of the weights.
    """
    if found.shape != expected.shape:
        return f"{len(found)} losses instead of {len(expected)}"
    if not bool(torch.isfinite(found).all()):
        return "a loss that is not finite"
    found, expected = found.double().cpu(), expected.double().cpu()
    apart = (found - expected).abs()
    size = 1 + expected.abs()
    if dtype == torch.float32:
        wrong = bool((apart > 1e-3 * size).any()) or float(apart.mean()) > 1e-4 * float(size.mean())
    else:
        wrong = float(apart.mean()) > 0.03 * float(size.mean())
    return f"loss {float(found.mean()):.4f} instead of {float(expected.mean()):.4f}" if wrong else None


def settle(causal: PreTrainedModel, where: str) -> None:
    """Give a model the fast attention where that computes the model's own function, else its own.

    Tried on a few short rows of random tokens, padded on the right and without a mask.

    Args:
        causal: whole, on its device, in evaluation mode.
        where: the model, for messages.

    Raises:
        UserError: its predictions are not finite, or other ones in a batch.
    """
    rows = _random_rows(causal)
    expected = own_losses(causal, rows)
    if not bool(torch.isfinite(expected).all()):
        raise not_finite(where)
    reason = None
    for name in (PLAIN, EAGER):
        reason = set_attention(causal, name)
        if reason is not None and name != EAGER:
            continue
        try:
            reason = difference(_batch_losses(causal, rows), expected, causal.dtype)
        except ValueError as error:  # of an attention that is given what it does not know
            reason = str(error)
        if reason is None:
            return
    raise UserError(
        f"{type(causal).__name__} predicts otherwise in a batch than alone: {reason}",
        where=where,
        fix="use another architecture (docs/models.md lists those that are checked)",
    )


def set_attention(causal: PreTrainedModel, name: str) -> str | None:
    """Switch to an attention implementation; says in words why the model does not take it, if so."""
    if causal.config._attn_implementation != name:
        try:
            causal.set_attn_implementation(name)
        except (ValueError, ImportError) as error:
            return str(error).splitlines()[0]
    return None if causal.config._attn_implementation == name else "its attention cannot be set"


def _unlike(causal: PreTrainedModel, way: Way, losses: Losses, expected: torch.Tensor, attention: str) -> str | None:
    """In words why a way does not compute the model's own function, if so."""
    refused = set_attention(causal, attention)
    if refused is not None and attention != EAGER:  # what takes no attention but its own may call it as it likes
        return refused
    try:
        with torch.random.fork_rng(), torch.inference_mode():
            causal.train()  # dropout inside attention, say, is only met here
            losses(causal, way)
        causal.eval()
        with torch.inference_mode():
            found = losses(causal, way)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - an architecture's own code may raise anything at what it does not expect
        return (str(error).splitlines() or [type(error).__name__])[0]
    finally:
        causal.eval()
    return difference(found, expected, causal.dtype)


@contextmanager
def _attention(causal: PreTrainedModel, name: str) -> Iterator[None]:
    before: Any = causal.config._attn_implementation
    set_attention(causal, name)
    try:
        yield
    finally:
        if causal.config._attn_implementation != before:
            causal.set_attn_implementation(before)


def _random_rows(causal: PreTrainedModel) -> list[Row]:
    """Rows of different lengths; of the vocabulary's first half, as the marks of other media are commonly its last tokens."""
    embedding: Any = causal.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    longest = within(positions(causal.config), 24)
    rows = []
    for length in (longest, max(2, longest * 2 // 3), max(2, longest // 3)):
        ids = torch.randint(max(2, embedding.weight.shape[0] // 2), (length,), generator=generator)
        rows.append(Row(ids, torch.arange(length - 1), ids[1:]))
    return rows


@torch.inference_mode()
def _batch_losses(causal: PreTrainedModel, rows: Sequence[Row]) -> torch.Tensor:
    batch = torch.nn.utils.rnn.pad_sequence([row.ids for row in rows], batch_first=True).to(causal.device)
    logits = causal(input_ids=batch, **uncached(causal)).logits
    predicted = torch.cat([logits[place, : len(row.labels)] for place, row in enumerate(rows)]).float()
    labels = torch.cat([row.labels for row in rows]).to(predicted.device)
    return torch.nn.functional.cross_entropy(predicted, labels, reduction="none")


def uncached(causal: PreTrainedModel) -> dict[str, bool]:
    """Arguments of a forward pass that keeps nothing for a next one."""
    return {"use_cache": False} if "use_cache" in inspect.signature(causal.forward).parameters else {}
