"""Mean hidden activation of each prompt at each decoder block, streamed.

A hook on each block takes the mean over a prompt's tokens as soon as the block has run. So a batch's hidden states are
dropped block by block, as in any forward pass, and what stays is one vector a prompt and block. The activation is what
a block gives to the next one (the residual stream), for the last block before the model's final norm. A prompt counts
once in the means over prompts, whatever its length.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from cft_ray.activations.prompts import Prompts, read_prompts, sample
from cft_ray.errors import UserError
from cft_ray.grid.settings import ActivationSettings, Template
from cft_ray.inference.batches import by_length, padded, taken
from cft_ray.inference.model import LoadedModel, load


@dataclass(frozen=True)
class Part:
    """Activations of some of the prompts.

    Args:
        prompts: [rows] their places.
        means: [blocks, rows, hidden size] float32, mean over each prompt's tokens.
        tokens: tokens read for them.
    """

    prompts: list[int]
    means: np.ndarray
    tokens: int


def stream_activations(model: LoadedModel, prompts: Prompts, batch_tokens: int) -> Iterator[Part]:
    """Take the activations of all prompts, a batch at a time, longest prompts first.

    Args:
        model: see `cft_ray.inference.model.load`.
        prompts: see `cft_ray.activations.prompts.read_prompts`.
        batch_tokens: most tokens in one forward pass.

    Raises:
        UserError: activations that are not finite.
    """
    with _pooled(model.blocks) as pool:
        for rows in by_length([len(ids) for ids in prompts.tokens], batch_tokens):
            ids = [prompts.tokens[row] for row in rows]
            batch = padded(ids, model.pad_id)
            pool.begin(taken(ids, batch.shape[1]).to(model.device))
            with torch.inference_mode():
                model.decoder(input_ids=batch.to(model.device), use_cache=False)
            means = pool.end()
            if not bool(torch.isfinite(means).all()):
                block, row = (~torch.isfinite(means).all(-1)).nonzero()[0].tolist()
                raise UserError(
                    f"the activations of layer {block} are not finite (NaN or infinity), at prompt {prompts.ids[rows[row]]}",
                    where=model.folder,
                    fix="check the model's weights, or use a wider dtype (bfloat16 or float32)",
                )
            yield Part(rows, means.numpy(), sum(len(each) for each in ids))


def read_model(
    folder: str, rows: pa.Table, template: Template | None, settings: ActivationSettings, *, where: str
) -> Iterator[Prompts | Part]:
    """Load a model and take its activations on prompts: first the prompts as they were read, then part after part.

    Args:
        folder: local Hugging Face folder.
        rows: canonical rows.
        template: how a prompt is wrapped; None: as it is.
        settings: sample, lengths, dtype and batches.
        where: the rows' source, for messages.

    Raises:
        UserError: the model cannot be loaded, a row has no prompt, activations are not finite.
    """
    model = load(folder, settings.dtype)
    limit = model.limit(settings.max_length)
    prompts = read_prompts(sample(rows, settings), template, model.tokenizer, limit, where=where, available=rows.num_rows)
    yield prompts
    yield from stream_activations(model, prompts, settings.batch_tokens)


class _Pool:
    """Gathers what the hooks see during one forward pass."""

    def __init__(self, blocks: int) -> None:
        self.means: list[torch.Tensor | None] = [None] * blocks
        self.weights = torch.empty(0)

    def begin(self, there: torch.Tensor) -> None:
        """``there``: [rows, width], which places hold tokens."""
        weights = there.float()
        self.weights = (weights / weights.sum(1, keepdim=True))[:, None]  # [rows, 1, width]

    def take(self, block: int) -> Callable[..., None]:
        """The hook of a block."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            self.means[block] = torch.bmm(self.weights, hidden.float())[:, 0]

        return hook

    def end(self) -> torch.Tensor:
        """[blocks, rows, hidden size] on the CPU; only now does the host wait for the device."""
        means = torch.stack([mean for mean in self.means if mean is not None]).cpu()
        self.means = [None] * len(self.means)
        return means


@contextmanager
def _pooled(blocks: list[nn.Module]) -> Iterator[_Pool]:
    pool = _Pool(len(blocks))
    hooks = [block.register_forward_hook(pool.take(place)) for place, block in enumerate(blocks)]
    try:
        yield pool
    finally:
        for hook in hooks:
            hook.remove()
