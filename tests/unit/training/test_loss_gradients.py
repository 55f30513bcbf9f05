"""The summed loss and its gradients in chunks of every size; losses one by one."""

from typing import Any

import pytest
import torch

from cft_ray.models.architectures import tiny_model
from cft_ray.models.function import Way
from cft_ray.models.outputs import Outputs
from cft_ray.training import attention, loss
from cft_ray.training.loss import SummedLoss, _SummedCrossEntropy


@pytest.mark.parametrize("at_once", [1, 20, 2**24])
@pytest.mark.parametrize("outputs", [Outputs(), Outputs(0.5), Outputs(1.0, 2.0), Outputs(0.5, 2.0)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_the_summed_loss_and_its_gradients(monkeypatch, at_once, outputs, bias):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    made = [torch.randn(5, 6), torch.randn(10, 6), torch.randn(10) if bias else None]
    labels = torch.tensor([0, 9, 3, 3, 1])
    ours, theirs = ([None if each is None else each.clone().requires_grad_() for each in made] for _ in range(2))
    total: Any = _SummedCrossEntropy.apply(ours[0], ours[1], ours[2], labels, outputs)
    hidden, weight, shift = theirs
    assert hidden is not None and weight is not None
    scores = outputs(torch.nn.functional.linear(hidden, weight, shift))
    expected = torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
    torch.testing.assert_close(total, expected)
    (total * 3).backward()
    (expected * 3).backward()
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None and other is not None:
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "cohere", "gemma2"])
@pytest.mark.parametrize("way", [Way("free"), Way("padded"), Way("padded", "own")], ids=str)
def test_losses_one_by_one_sum_to_the_whole(kind, way):
    from cft_ray.training.verdicts import random_probe

    model: Any = tiny_model(kind)
    probe = random_probe()
    batch = probe.batches[way.padding]
    if way.padding == "free":
        model.set_attn_implementation(attention.NAME)
    module = SummedLoss(model, model, way)
    each = module(batch, summed=False)
    assert each.shape == batch.labels.shape
    torch.testing.assert_close(each.sum(), module(batch), rtol=1e-4, atol=1e-4)
    plain: Any = tiny_model(kind)
    plain.set_attn_implementation("eager")
    expected = [
        torch.nn.functional.cross_entropy(plain(row.ids[None]).logits[0, row.predictors], row.labels, reduction="none")
        for row in probe.rows
    ]
    torch.testing.assert_close(each, torch.cat(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", [Way("padded"), Way("padded", "own")], ids=str)
def test_a_model_that_takes_no_positions_is_given_none(way):
    from cft_ray.training.verdicts import random_probe

    model: Any = tiny_model("bloom")
    probe = random_probe()
    each = SummedLoss(model, model, way)(probe.batches["padded"], summed=False)
    plain: Any = tiny_model("bloom")
    expected = [
        torch.nn.functional.cross_entropy(plain(row.ids[None]).logits[0, row.predictors], row.labels, reduction="none")
        for row in probe.rows
    ]
    torch.testing.assert_close(each, torch.cat(expected), rtol=1e-3, atol=1e-3)
