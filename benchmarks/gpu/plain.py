"""A training as a user of transformers would write it, to compare with: nothing of `cft_ray`'s training is used.

The model's own forward pass and loss on padded rows, fp32 master weights beside bf16 ones, torch's AdamW and gradient clipping,
transformers' cosine schedule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

IGNORED = -100


@dataclass(frozen=True)
class Optimisation:
    """Of AdamW and the schedule."""

    learning_rate: float
    warmup: int
    steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip: float = 1.0


def padded_batch(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], pad_id: int, device: torch.device
) -> tuple[dict[str, torch.Tensor], int]:
    """(inputs of a causal model, number of targets) of rows of (token ids, which are targets), padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for place, (ids, taught) in enumerate(rows):
        whole = torch.from_numpy(np.array(ids, dtype=np.int64))
        inputs[place, : len(ids)] = whole
        mask[place, : len(ids)] = 1
        labels[place, : len(ids)] = torch.where(torch.from_numpy(np.array(taught)), whole, IGNORED)
    batch = {"input_ids": inputs, "attention_mask": mask, "labels": labels}
    return {key: each.to(device) for key, each in batch.items()}, int((labels != IGNORED).sum())


class Plain:
    """One training.

    Args:
        causal: on its device, in training's precision; or peft's around one.
        given: of the optimizer.
        frozen: parameter -> [rows] bool, rows whose gradient is set to zero.
    """

    def __init__(self, causal: Any, given: Optimisation, frozen: Mapping[str, torch.Tensor] | None = None) -> None:
        self.causal = causal.train()
        self._clip = given.clip
        named: list[tuple[str, nn.Parameter]] = [pair for pair in causal.named_parameters() if pair[1].requires_grad]
        self._parameters = [parameter for _, parameter in named]
        self._masters = [parameter.detach().float().clone() for parameter in self._parameters]
        self._frozen = [(parameter, rows) for name, parameter in named if (rows := (frozen or {}).get(name)) is not None]
        self._optimizer = torch.optim.AdamW(
            self._masters, lr=given.learning_rate, betas=given.betas, eps=given.epsilon, weight_decay=0.0
        )
        self._schedule = get_cosine_schedule_with_warmup(self._optimizer, given.warmup, given.steps)

    def step(self, batch: Mapping[str, torch.Tensor], targets: int) -> float:
        """One optimizer step; returns its loss, the mean over the targets."""
        loss = self.causal(**batch, num_items_in_batch=targets, use_cache=False).loss
        loss.backward()
        with torch.no_grad():
            for parameter, rows in self._frozen:
                assert parameter.grad is not None
                parameter.grad[rows.to(parameter.device)] = 0
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                master.grad = torch.zeros_like(master) if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
            torch.nn.utils.clip_grad_norm_(self._masters, self._clip)
            self._optimizer.step()
            self._schedule.step()
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                master.grad = None
                parameter.copy_(master)
        return float(loss.detach())
