"""The chunked loss against PyTorch's own, forward and backward."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cft_ray.models.architectures import tiny_model
from cft_ray.models.attention import EAGER
from cft_ray.models.function import Way, own_losses, set_attention
from cft_ray.training import loss
from cft_ray.training.probe import attention_of
from cft_ray.training.verdicts import LENGTHS, random_probe


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


def test_what_a_loss_is_divided_by_is_not_rounded_to_bf16():
    """Of 1/491 bf16 makes a number that is 0.37 % off, and every gradient of a step would be as far off."""
    torch.manual_seed(0)
    head = loss.Head(64, 300, dtype=torch.bfloat16)
    hidden, labels = torch.randn(50, 64, dtype=torch.bfloat16, requires_grad=True), torch.randint(300, (50,))
    factor = 1 / 491
    plain, scaled = (torch.autograd.grad(head(hidden, labels=labels) * by, [hidden, *head.parameters()]) for by in (1.0, factor))
    for one, other in zip(plain, scaled, strict=True):
        alone, divided = one.double().flatten(), other.double().flatten()
        assert float(alone @ divided / (alone @ alone)) == pytest.approx(factor, rel=5e-4)


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


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(each.numel() for each in tree_leaves(found) if isinstance(each, torch.Tensor))])
        return found


@pytest.mark.parametrize("kind", ["llama", "cohere", "gemma2"])
def test_a_step_holds_one_chunk_of_logits_at_a_time(monkeypatch, kind):
    """Tied heads and heads with caps too; the whole logits of the step would be ten times the largest tensor."""
    vocabulary, positions = 5000, sum(LENGTHS) - len(LENGTHS)
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 4 * vocabulary)
    model: Any = tiny_model(kind, vocabulary=vocabulary)
    weights = model.get_output_embeddings().weight.numel()
    set_attention(model, attention_of(Way())[0])
    module = loss.SummedLoss(model, model, Way())
    assert type(model.get_output_embeddings()) is loss.Head
    with Largest() as seen:
        module(random_probe().batches["free"]).backward()
    assert seen.numbers <= max(weights, 4 * vocabulary)
    set_attention(model, "eager")
    with Largest() as seen:  # which the measure would notice
        loss.SummedLoss(model, model, Way("padded", "own"))(random_probe().batches["padded"])
    assert seen.numbers >= positions * vocabulary


def test_a_model_that_counts_places_itself_is_given_none():
    model, rows = tiny_model("bloom"), random_probe()
    set_attention(model, EAGER)
    found, expected = rows.of_model(model, Way("padded")), own_losses(model, rows.rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
