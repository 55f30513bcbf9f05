"""Attention's scales, windows, caps and sinks, layouts by hand, and what the GPU's attention is told."""

from typing import Any

import pytest
import torch

from cft_ray.training import attention
from cft_ray.training.attention import Layout, Scores, attend


def dense(query: Any, key: Any, value: Any, lengths: list[int], scores: Scores) -> torch.Tensor:
    """Over an explicit mask of samples, in float64."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(sum(lengths))[:, None] - torch.arange(sum(lengths))
    mask = (owner[:, None] == owner) & (distance >= 0) & (distance < (scores.window or 10**9))
    repeat = query.shape[1] // key.shape[1]
    key, value = key.double().repeat_interleave(repeat, 1), value.double().repeat_interleave(repeat, 1)
    found = query.double() @ key.transpose(-1, -2) * (scores.scaling or query.shape[-1] ** -0.5)
    if scores.softcap:
        found = scores.softcap * torch.tanh(found / scores.softcap)
    found = found.masked_fill(~mask, -torch.inf)
    if scores.sink is not None:
        sink = scores.sink.double()[None, :, None, None].expand(1, -1, len(mask), 1)
        return (torch.cat([found, sink], -1).softmax(-1)[..., :-1] @ value).transpose(1, 2)
    return (found.softmax(-1) @ value).transpose(1, 2)


SINK = torch.tensor([0.5, -1.0, 2.0, 0.0])


@pytest.mark.parametrize("lengths", [[6], [9, 8, 3], [4, 4]])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    "scores",
    [
        Scores(0.7, None, None, None),
        Scores(0.7, 3, None, None),
        Scores(None, None, 1.5, None),
        Scores(0.7, 3, 1.5, SINK),
        Scores(None, None, None, SINK),
        Scores(None, 4, None, None),
        Scores(None, 1, None, None),
    ],
    ids=str,
)
def test_scales_windows_caps_and_sinks(lengths, kv_heads, scores):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, sum(lengths), 8) for heads in (4, kv_heads, kv_heads))
    value = value[..., :5]  # values have a size of their own
    found, nothing = attend(
        torch.nn.Module(), query, key, value, None, layout=Layout.of(lengths), scaling=scores.scaling,
        sliding_window=scores.window, softcap=scores.softcap, s_aux=scores.sink,
    )  # fmt: skip
    torch.testing.assert_close(found.double(), dense(query, key, value, lengths, scores), atol=1e-5, rtol=1e-5)
    assert nothing is None


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"attention_mask": torch.ones(1)}, "a mask of its own"),
        ({"rows": 2}, "a mask of its own"),
        ({"is_causal": False}, "not causal"),
        ({"module": False}, "not causal"),
        ({"dropout": 0.1}, "dropout is not supported"),
        ({"lengths": [7]}, "other tokens"),
        ({"keys": 5}, "other tokens"),
    ],
    ids=lambda item: str(item) if isinstance(item, str) else next(iter(item)),
)
def test_what_cannot_be_computed_end_to_end_is_refused(changes, what):
    module: Any = torch.nn.Module()
    if "module" in changes:
        module.is_causal = changes["module"]
    query = torch.randn(changes.get("rows", 1), 2, 6, 4)
    key = torch.randn(changes.get("rows", 1), 2, changes.get("keys", 6), 4)
    more = {name: changes[name] for name in ("is_causal", "dropout") if name in changes}
    with pytest.raises(ValueError, match=what):
        attend(module, query, key, key, changes.get("attention_mask"), layout=Layout.of(changes.get("lengths", [6])), **more)
    plain = torch.randn(1, 2, 6, 4)
    module.is_causal = True
    assert attend(module, plain, plain, plain, None, layout=Layout.of([6]), is_causal=None)[0].shape == (1, 6, 2, 4)
    module.is_causal = False  # what the call says counts before what the layer says
    assert attend(module, plain, plain, plain, None, layout=Layout.of([6]), is_causal=True)[0].shape == (1, 6, 2, 4)


def test_a_window_as_long_as_the_longest_sample_needs_no_mask(monkeypatch):
    seen: list[int | None] = []
    real = attention._side_by_side
    monkeypatch.setattr(attention, "_side_by_side", lambda *given: (seen.append(given[-1].window), real(*given))[1])
    states = torch.randn(1, 1, 9, 4)
    for window in (5, 6, 7, None):
        attend(torch.nn.Module(), states, states, states, None, layout=Layout.of([6, 3]), sliding_window=window)
    assert seen == [5, 5, None, None, None, None, None, None]


def test_layouts_by_hand():
    layout = Layout.of([4, 3, 1])
    assert layout.offsets.tolist() == [0, 4, 7, 8] and layout.offsets.dtype == torch.int32 and layout.longest == 4
    # 4 and 3 side by side are 8 places for 7 tokens, within a quarter more; a 1 beside them would make 12 for 8.
    first, second = layout.buckets
    assert (first.start, first.stop, first.rows, first.width) == (0, 7, 2, 4)
    assert first.places is not None and first.places.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert (second.start, second.stop, second.rows, second.width, second.places) == (7, 8, 1, 1, None)
    # Just a quarter more is still taken: 5 and 3 are 10 places for 8 tokens; 6 and 3 would be 12 for 9.
    assert len(Layout.of([5, 3]).buckets) == 1 and len(Layout.of([6, 3]).buckets) == 2
    (places,) = [bucket.places for bucket in Layout.of([5, 3]).buckets]
    assert places is not None and places.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert Layout.of([3, 5]).buckets[0].places is not None
    equal = Layout.of([2, 2]).buckets
    assert len(equal) == 1 and equal[0].places is None
    assert Layout.of([2]).to(torch.device("cpu")).longest == 2


@pytest.mark.parametrize(
    ("dtype", "value_size", "scores", "flash"),
    [
        (torch.bfloat16, 64, Scores(None, None, None, None), True),
        (torch.float16, 64, Scores(0.5, 3, None, None), True),
        (torch.float32, 64, Scores(None, None, None, None), False),
        (torch.bfloat16, 32, Scores(None, None, None, None), False),
        (torch.bfloat16, 64, Scores(None, None, 1.0, None), False),
        (torch.bfloat16, 64, Scores(None, None, None, SINK), False),
    ],
    ids=str,
)
def test_what_flash_attention_computes(dtype, value_size, scores, flash):
    query, value = torch.zeros(3, 2, 64, dtype=dtype), torch.zeros(3, 2, value_size, dtype=dtype)
    assert attention._flash(query, value, scores) is flash
    wide = torch.zeros(1, 1, 256, dtype=torch.bfloat16), torch.zeros(1, 1, 257, dtype=torch.bfloat16)
    assert [attention._flash(each, each, Scores(None, None, None, None)) for each in wide] == [True, False]


@pytest.mark.parametrize(("window", "left"), [(None, -1), (1, 0), (5, 4)])
@pytest.mark.parametrize(("kv_heads", "grouped"), [(4, False), (2, True)])
def test_what_variable_length_attention_is_told(monkeypatch, window, left, kv_heads, grouped):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    told: dict[str, Any] = {}

    def record(*given: Any, **named: Any) -> torch.Tensor:
        told.update(named, given=given)
        return given[0]

    monkeypatch.setattr(varlen, "varlen_attn", record)
    layout, query, key = Layout.of([4, 2]), torch.zeros(6, 4, 8), torch.zeros(6, kv_heads, 8)
    attention._varlen(query, key, key, layout, Scores(0.3, window, None, None))
    assert told["window_size"] == (left, 0) and told["scale"] == 0.3 and told["enable_gqa"] is grouped
    assert told["given"][3] is told["given"][4] is layout.offsets and told["given"][5:] == (4, 4)
