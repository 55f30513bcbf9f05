"""A few real rows on which a training's losses are compared with the model's own: before the first step and at the end."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cft_ray.models.attention import EAGER, PLAIN
from cft_ray.models.function import Row, Way
from cft_ray.training import attention
from cft_ray.training.collate import MicroBatch, collate
from cft_ray.training.examples import Examples
from cft_ray.training.loss import SummedLoss

ROWS = 4
ROW_TOKENS = 256
"""rows up to this length are preferred: the comparison is to cost a few steps of a training at most"""


@dataclass(frozen=True)
class Probe:
    """Rows of a training.

    Args:
        batches: padding -> the rows as a micro-batch.
        rows: the same rows apart.
    """

    batches: dict[str, MicroBatch]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, examples: Examples, pad_id: int) -> "Probe":
        """Short rows of different lengths, longest first.

        Args:
            examples: all rows.
            pad_id: token id of padding.
        """
        order = np.argsort(examples.lengths, kind="stable")
        short = order[: max(2, int(np.searchsorted(examples.lengths[order], ROW_TOKENS, side="right")))]
        chosen = short[np.unique(np.linspace(0, len(short) - 1, min(ROWS, len(short))).astype(int))][::-1].tolist()
        batches = {padding: collate(examples, chosen, padding=padding, pad_id=pad_id) for padding in ("free", "padded")}
        padded = batches["padded"]
        assert padded.mask is not None
        width = padded.input_ids.shape[1]
        rows = []
        for place, length in enumerate(padded.mask.sum(1).tolist()):
            mine = padded.predictors // width == place
            rows.append(Row(padded.input_ids[place, :length], padded.predictors[mine] % width, padded.labels[mine]))
        return cls(batches, tuple(rows))

    def losses(self, module: torch.nn.Module, way: Way, device: torch.device) -> torch.Tensor:
        """[targets] losses in nats as a training computes them.

        Args:
            module: a `SummedLoss`, or the engine around one.
            way: of that module.
            device: where it computes.

        Raises:
            ValueError: their sum is not what a step would take.
        """
        batch = self.batches[way.padding].to(device)
        each = module(batch, summed=False)
        if module.training:  # two passes with dropout differ
            return each
        total = float(module(batch))
        # A loss is a difference of logits: what is near zero has their noise.
        noise = len(each) * (1e-5 if next(module.parameters()).dtype == torch.float32 else 1e-3)
        if not math.isclose(total, float(each.double().sum()), rel_tol=1e-3, abs_tol=noise):
            raise ValueError(f"the loss of a step, {total:.4f}, is not the sum of its targets' losses, {float(each.sum()):.4f}")
        return each

    def leaks(self, module: torch.nn.Module, device: torch.device) -> bool:
        """Whether a sample laid end to end is predicted otherwise when the first one is turned round.

        A leak of a token or two (a short convolution) drowns in the mean of all losses. So it is looked for where it is
        largest: at every token of the later samples, against the same computation.

        Args:
            module: a `SummedLoss`.
            device: where it computes.
        """
        batch = self.batches["free"]
        layout = batch.layout
        if layout is None or len(layout.offsets) < 3:
            return False
        first = int(layout.offsets[1])
        ids = batch.input_ids[0]
        later = torch.arange(first, len(ids) - 1)
        later = later[~torch.isin(later + 1, layout.offsets.long())]  # the last of a sample predicts nothing
        whole = replace(batch, predictors=later, labels=ids[later + 1]).to(device)
        turned = torch.cat([ids[:first].flip(0), ids[first:]])[None].to(device)
        before, after = (module(each, summed=False) for each in (whole, replace(whole, input_ids=turned)))
        # Of tiny models: the same computation again differs by up to 2e-7 in fp32 and not at all in bf16, in which the least leak
        # is a rounding, 3e-3; the least leak in fp32 is 3e-5.
        tolerance = 5e-6 if next(module.parameters()).dtype == torch.float32 else 1e-3
        return bool(((after - before).abs() > tolerance * (1 + before.abs())).any())

    def of_model(self, causal: PreTrainedModel, way: Way) -> torch.Tensor:
        """[targets] losses of a whole model, as a training would compute them."""
        head = causal.get_output_embeddings()
        kind: Any = type(head)
        try:
            module = SummedLoss(causal, causal, way).train(causal.training)
            if way.padding == "free" and not causal.training and self.leaks(module, causal.device):
                raise ValueError("a sample is predicted otherwise after another sample")
            return self.losses(module, way, causal.device)
        finally:
            if head is not None:
                head.__class__ = kind


def attention_of(way: Way) -> tuple[str, ...]:
    """transformers' names of the attentions that a way may go with, the cheapest first."""
    return (attention.NAME,) if way.padding == "free" else (PLAIN, EAGER)
