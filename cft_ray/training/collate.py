"""A micro-batch as tensors: samples laid end to end (no padding at all), or one a row, right-padded.

Only positions that predict a target are listed; the model's head is applied to those alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cft_ray.training.attention import Layout
from cft_ray.training.examples import Examples


@dataclass(frozen=True)
class MicroBatch:
    """Input of one forward pass.

    Args:
        input_ids: [rows, width] token ids; one row where samples are laid end to end.
        position_ids: [rows, width] positions inside each sample.
        predictors: [targets] flat indices of the positions that predict a target.
        labels: [targets] token ids to predict.
        layout: where each sample lies, for attention; None where padded.
        mask: [rows, width] 1 for tokens, 0 for padding; None where laid end to end.
        tokens: tokens that are no padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predictors: torch.Tensor
    labels: torch.Tensor
    layout: Layout | None
    mask: torch.Tensor | None
    tokens: int

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device."""
        return MicroBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.predictors.to(device),
            self.labels.to(device),
            self.layout.to(device) if self.layout else None,
            self.mask.to(device) if self.mask is not None else None,
            self.tokens,
        )


def collate(examples: Examples, rows: Sequence[int], *, padding: str, pad_id: int) -> MicroBatch:
    """Build a micro-batch.

    Args:
        examples: the encoded rows.
        rows: which of them, longest first (as `order.deal` gives them). None at all makes a batch of one token without
            targets: its rank has nothing to do, but must take part in gathering parameters.
        padding: "free" or "padded".
        pad_id: token id of padding.
    """
    if not rows:
        nothing = torch.zeros(0, dtype=torch.long)
        blank = torch.full((1, 1), pad_id)
        layout = Layout.of([1]) if padding == "free" else None
        return MicroBatch(blank, torch.zeros_like(blank), nothing, nothing, layout, None if layout else torch.ones_like(blank), 0)
    lengths = [int(examples.lengths[row]) for row in rows]
    targets = [np.flatnonzero(examples.mask(row)) for row in rows]
    ids = [examples.ids(row) for row in rows]
    labels = torch.from_numpy(np.concatenate([row[taught] for row, taught in zip(ids, targets, strict=True)]).astype(np.int64))
    width = max(lengths) if padding == "padded" else None
    starts = np.arange(len(rows)) * width if width else np.cumsum([0, *lengths[:-1]])
    predictors = np.concatenate([start + taught - 1 for start, taught in zip(starts, targets, strict=True)])
    if width is None:
        input_ids = torch.from_numpy(np.concatenate(ids).astype(np.int64))[None]
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None]
        layout, mask = Layout.of(lengths), None
    else:
        input_ids = torch.full((len(rows), width), pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(ids):
            input_ids[place, : len(row)] = torch.from_numpy(row.astype(np.int64))
            mask[place, : len(row)] = 1
        positions = torch.arange(width).expand(len(rows), -1)
        layout = None
    return MicroBatch(input_ids, positions, torch.from_numpy(predictors), labels, layout, mask, sum(lengths))
