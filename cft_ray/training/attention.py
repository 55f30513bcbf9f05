"""Causal attention kept inside each sample of a batch whose samples are laid end to end.

On a GPU PyTorch's variable-length flash attention does it, where it can. Elsewhere samples of like length are put side by
side and go through `scaled_dot_product_attention` together. The room behind a shorter sample needs no mask: under
causal attention no token sees what comes after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from cft_ray.models.attention import refuse_unknown

NAME = "cft_ray_varlen"
WASTE = 1.25
"""a bucket takes a shorter sample while its padded tokens stay below this multiple of its tokens"""


@dataclass(frozen=True)
class Bucket:
    """Samples that are attended to together where there is no variable-length attention.

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
        """The same on a device; buckets stay where they are."""
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
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that transformers' `AttentionInterface` asks for.

    Args:
        module: the calling layer.
        query: [1, heads, tokens, head size]; key and value: [1, kv heads, tokens, head size], values of any size.
        attention_mask: None; ``layout`` says all.
        layout: where the samples lie.
        scaling: of the scores; 1 / sqrt(head size) if None.
        dropout: probability; must be 0.
        sliding_window: tokens a query sees, itself included; None: all before it.
        softcap: scores become softcap · tanh(scores / softcap) (Gemma 2).
        s_aux: [heads] score of a sink that takes part in the softmax and has no value (gpt-oss).
        is_causal: must not be False.
        others: nothing that would change the result.

    Returns:
        [1, tokens, heads, head size], and no attention weights.

    Raises:
        ValueError: what cannot be computed for samples laid end to end.
    """
    refuse_unknown(others, "samples laid end to end")
    if attention_mask is not None or query.shape[0] != 1:
        raise ValueError("attention has a mask of its own")
    if is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False):
        raise ValueError("attention is not causal")
    if dropout:
        raise ValueError("attention dropout is not supported with samples laid end to end: set training.padding to padded")
    if query.shape[2] != key.shape[2] or query.shape[2] != layout.buckets[-1].stop:
        raise ValueError("attention is asked over other tokens than those of the samples")
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [tokens, heads, head size]
    window = sliding_window if sliding_window is not None and sliding_window < layout.longest else None
    scores = Scores(scaling, window, softcap, s_aux)
    if query.device.type == "cuda" and _flash(query, value, scores):
        return _varlen(query, key, value, layout, scores)[None], None
    parts = [_side_by_side(query, key, value, bucket, scores) for bucket in layout.buckets]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


@dataclass(frozen=True)
class Scores:
    """What happens to the scores; see `attend`."""

    scaling: float | None
    window: int | None
    softcap: float | None
    sink: torch.Tensor | None


def _flash(query: torch.Tensor, value: torch.Tensor, scores: Scores) -> bool:
    """Whether PyTorch's variable-length flash attention computes it."""
    plain = scores.softcap is None and scores.sink is None
    half = query.dtype in (torch.bfloat16, torch.float16)
    return plain and half and query.shape[2] == value.shape[2] <= 256


def _varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scores: Scores) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query,
        key,
        value,
        layout.offsets,
        layout.offsets,
        layout.longest,
        layout.longest,
        scale=scores.scaling,
        window_size=(-1 if scores.window is None else scores.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output


def _side_by_side(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bucket: Bucket, scores: Scores) -> torch.Tensor:
    places = bucket.places.to(query.device) if bucket.places is not None else None

    def rows(states: torch.Tensor) -> torch.Tensor:
        states = states[bucket.start : bucket.stop]
        if places is not None:
            states = _Spread.apply(states, places, bucket.rows * bucket.width)
        return states.unflatten(0, (bucket.rows, bucket.width)).transpose(1, 2)  # [rows, heads, width, head size]

    mask = None
    if scores.window is not None and scores.window < bucket.width:
        distance = torch.arange(bucket.width, device=query.device)
        distance = distance[:, None] - distance
        mask = (distance >= 0) & (distance < scores.window)
    if scores.softcap is not None or scores.sink is not None:
        output = _explicit(rows(query), rows(key), rows(value), mask, scores)
    else:
        output = scaled_dot_product_attention(
            rows(query),
            rows(key),
            rows(value),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scores.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    tokens = output.transpose(1, 2).flatten(0, 1)
    return tokens if places is None else _Collect.apply(tokens, places)


def _explicit(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scores: Scores
) -> torch.Tensor:
    """Attention with its scores at hand, [rows, heads, width, width], as capped and sunken ones need them."""
    heads, width = query.shape[1], query.shape[2]
    key, value = (states.repeat_interleave(heads // states.shape[1], dim=1) for states in (key, value))
    weights = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scores.scaling is None else scores.scaling)
    if scores.softcap is not None:
        weights = scores.softcap * torch.tanh(weights / scores.softcap)
    if mask is None:
        mask = torch.ones(width, width, dtype=torch.bool, device=query.device).tril()
    weights = weights.float().masked_fill(~mask, -torch.inf)
    if scores.sink is not None:
        sink = scores.sink.float().reshape(1, -1, 1, 1).expand(weights.shape[0], -1, width, 1)
        return torch.cat([weights, sink], dim=-1).softmax(-1)[..., :-1].to(value.dtype) @ value
    return weights.softmax(-1).to(value.dtype) @ value


AttentionInterface.register(NAME, attend)
