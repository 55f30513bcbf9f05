"""Attention inside samples against one dense masked attention over the whole stream."""

from typing import Any

import pytest
import torch

from cft_ray.models.attention import plain
from cft_ray.training.attention import Layout, attend


def dense(query, key, value, lengths, window):
    """Softmax over an explicit block-diagonal causal mask, in float64."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.cat([torch.arange(length) for length in lengths])
    distance = place[:, None] - place
    mask = (owner[:, None] == owner) & (distance >= 0) & (distance < (window or 10**9))
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value.double()).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("lengths", [[7], [9, 9, 9], [40, 38, 12, 11, 3, 1], [5, 30, 2]])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_dense_attention_forward_and_backward(lengths, kv_heads, window):
    torch.manual_seed(0)
    shapes = [(1, heads, sum(lengths), 8) for heads in (4, kv_heads, kv_heads)]
    ours = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [state.detach().clone().requires_grad_() for state in ours]
    query, key, value = ours
    output, _ = attend(torch.nn.Module(), query, key, value, None, layout=Layout.of(lengths), sliding_window=window)
    expected = dense(theirs[0], theirs[1], theirs[2], lengths, window)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected.shape)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5)


def test_buckets_cover_the_stream_and_waste_little():
    lengths = sorted(torch.randint(3, 400, (64,), generator=torch.Generator().manual_seed(0)).tolist(), reverse=True)
    buckets = Layout.of(lengths).buckets
    assert [bucket.start for bucket in buckets] == [0, *(bucket.stop for bucket in buckets[:-1])]
    assert buckets[-1].stop == sum(lengths)
    assert sum(bucket.rows * bucket.width for bucket in buckets) <= 1.25 * sum(lengths)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "indices", "block_indices", "head_mask", "something_new"])
def test_an_argument_that_may_change_the_result_is_never_swallowed(name):
    """By neither attention; what has no value, or is applied elsewhere, is let through."""
    query, key, value = (torch.randn(1, 2, 7, 8) for _ in range(3))
    module = torch.nn.Module()
    given: dict[str, Any] = {name: torch.ones(2)}
    with pytest.raises(ValueError, match=name):
        plain(module, query, key, value, None, **given)
    if name not in ("softcap", "s_aux"):  # which it computes
        with pytest.raises(ValueError, match=name):
            attend(module, query, key, value, None, layout=Layout.of([7]), **given)
    harmless: dict[str, Any] = {name: None, "position_ids": torch.arange(7)[None], "use_cache": False}
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    for output, _ in (
        plain(module, query, key, value, None, **harmless),
        attend(module, query, key, value, None, layout=Layout.of([7]), **harmless),
    ):
        torch.testing.assert_close(output, expected)
