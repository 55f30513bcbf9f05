"""KL by blocks of positions against PyTorch's own in float64."""

import pytest
import torch

from cft_ray.divergence import kl
from cft_ray.divergence.kl import divergences


def head(seed: int, vocabulary: int, size: int, scale: float, bias: bool) -> torch.nn.Linear:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(size, vocabulary, bias=bias)
    torch.nn.init.normal_(layer.weight, std=scale)
    return layer.requires_grad_(False)


def apart(left, left_head, right, right_head) -> torch.Tensor:
    return divergences(left, right, (left_head, right_head), left_head.weight.shape[0])


def direct(left, left_head, right, right_head) -> torch.Tensor:
    p, q = (layer.double()(states.double()).log_softmax(-1) for layer, states in ((left_head, left), (right_head, right)))
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)


@pytest.mark.parametrize("block", [1, 1000, 2**24])
@pytest.mark.parametrize(("scale", "bias"), [(0.05, False), (1.0, True), (20.0, False)])
def test_it_is_the_divergence_whatever_the_block(monkeypatch, block, scale, bias):
    monkeypatch.setattr(kl, "BLOCK", block)
    heads = head(0, 301, 16, scale, bias), head(1, 301, 16, scale, bias)
    left, right = torch.randn(2, 37, 16).unbind()
    found = apart(left, heads[0], right, heads[1])
    torch.testing.assert_close(found, direct(left, heads[0], right, heads[1]), rtol=1e-5, atol=1e-6)


def test_equal_models_have_none_and_nearly_equal_ones_little():
    one = head(0, 5000, 16, 0.3, False)
    states = torch.randn(20, 16)
    assert apart(states, one, states, one).tolist() == [0.0] * 20
    near = states + 1e-3 * torch.randn(20, 16)
    torch.testing.assert_close(apart(states, one, near, one), direct(states, one, near, one), rtol=0.3, atol=5e-7)
