"""The chunked loss against PyTorch's own, forward and backward."""

import pytest
import torch

from cft_ray.training import loss


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_equals_cross_entropy(monkeypatch, chunk, bias):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", chunk * 17)
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 17, bias=bias)
    hidden, labels = torch.randn(10, 8, requires_grad=True), torch.randint(17, (10,))
    expected = torch.nn.functional.cross_entropy(head(hidden), labels, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.3, [hidden, *head.parameters()])
    head.__class__ = loss.Head
    ours = head(hidden, labels=labels)
    got = torch.autograd.grad(ours * 0.3, [hidden, *head.parameters()])
    torch.testing.assert_close(ours, expected)
    for mine, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_no_targets_cost_nothing_and_give_zero_gradients():
    head = loss.Head(4, 5)
    hidden = torch.randn(0, 4, requires_grad=True)
    total = head(hidden, labels=torch.zeros(0, dtype=torch.long))
    total.backward()
    assert total == 0
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_a_frozen_head_gets_no_gradient():
    head = loss.Head(4, 5).requires_grad_(False)
    hidden = torch.randn(3, 4, requires_grad=True)
    head(hidden, labels=torch.tensor([0, 1, 2])).backward()
    assert hidden.grad is not None and head.weight.grad is None
