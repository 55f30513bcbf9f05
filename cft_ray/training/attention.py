"""Causal attention kept inside each sample of a batch whose samples are laid end to end.

On a GPU PyTorch's variable-length flash attention does it. On a CPU samples of like length are put side by side and go
through `scaled_dot_product_attention` together. The room behind a shorter sample needs no mask: under causal attention
no token sees what comes after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "cft_ray_varlen"
WASTE = 1.25
"""a bucket takes a shorter sample while its padded tokens stay below this multiple of its tokens"""


@dataclass(frozen=True)
class Bucket:
    """Samples that are attended to together on a CPU.

    Args:
        start, stop: their range of tokens.
        rows: samples.
        width: tokens of the longest.
        places: [stop - start] where each token lies in the padded [rows * width]; None if nothing is padded.
    """

    start: int
    stop: int
    rows: int
    width: int
    places: torch.Tensor | None


@dataclass(frozen=True)
class Layout:
    """Where samples lie.

    Args:
        offsets: [samples + 1] int32, start of each sample.
        longest: tokens of the longest sample.
        buckets: see `Bucket`.
    """

    offsets: torch.Tensor
    longest: int
    buckets: tuple[Bucket, ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Layout":
        """Layout of samples end to end; padding is least if they come longest first."""
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        offsets[1:] = torch.tensor(lengths).cumsum(0)
        buckets: list[Bucket] = []
        group: list[int] = []
        start = 0
        for length in [*lengths, 0]:
            if group and (not length or max(*group, length) * (len(group) + 1) > WASTE * (sum(group) + length)):
                buckets.append(_bucket(start, group))
                start += sum(group)
                group = []
            group.append(length)
        return cls(offsets, max(lengths), tuple(buckets))

    def to(self, device: torch.device) -> "Layout":
        """The same on a device; buckets serve CPUs alone and stay."""
        return Layout(self.offsets.to(device), self.longest, self.buckets)


def _bucket(start: int, lengths: list[int]) -> Bucket:
    width = max(lengths)
    places = None
    if min(lengths) < width:
        places = torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)])
    return Bucket(start, start + sum(lengths), len(lengths), width, places)


class _Spread(torch.autograd.Function):
    """Tokens to their places among zeros; its gradient is a plain gather (no accumulation: places are distinct)."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
        ctx.save_for_backward(places)
        return tokens.new_zeros(size, *tokens.shape[1:]).index_copy_(0, places, tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


class _Collect(torch.autograd.Function):
    """Inverse of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, spread: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.size = spread.shape[0]
        return spread.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (places,) = ctx.saved_tensors
        gradient = gradients[0]
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, places, gradient), None


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that transformers' `AttentionInterface` asks for.

    Args:
        module: the calling layer.
        query: [1, heads, tokens, head size]; key and value: [1, kv heads, tokens, head size].
        attention_mask: None; ``layout`` says all.
        layout: where the samples lie.
        scaling: of the scores; 1 / sqrt(head size) if None.
        dropout: probability; must be 0.
        sliding_window: tokens a query sees, itself included; None: all before it.

    Returns:
        [1, tokens, heads, head size], and no attention weights.
    """
    assert attention_mask is None and query.shape[0] == 1
    if dropout:
        raise ValueError("attention dropout is not supported with samples laid end to end: set training.padding to padded")
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [tokens, heads, head size]
    window = sliding_window if sliding_window is not None and sliding_window < layout.longest else None
    if query.device.type == "cuda":
        return _on_gpu(query, key, value, layout, scaling, window)[None], None
    parts = [_on_cpu(query, key, value, bucket, scaling, window) for bucket in layout.buckets]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def _on_gpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float | None, window: int | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query,
        key,
        value,
        layout.offsets,
        layout.offsets,
        layout.longest,
        layout.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output


def _on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bucket: Bucket, scaling: float | None, window: int | None
) -> torch.Tensor:
    def rows(states: torch.Tensor) -> torch.Tensor:
        states = states[bucket.start : bucket.stop]
        if bucket.places is not None:
            states = _Spread.apply(states, bucket.places, bucket.rows * bucket.width)
        return states.unflatten(0, (bucket.rows, bucket.width)).transpose(1, 2)  # [rows, heads, width, head size]

    mask = None
    if window is not None and window < bucket.width:
        distance = torch.arange(bucket.width)[:, None] - torch.arange(bucket.width)
        mask = (distance >= 0) & (distance < window)
    output = scaled_dot_product_attention(
        rows(query),
        rows(key),
        rows(value),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    tokens = output.transpose(1, 2).flatten(0, 1)
    return tokens if bucket.places is None else _Collect.apply(tokens, bucket.places)


AttentionInterface.register(NAME, attend)
