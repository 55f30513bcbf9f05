"""The comparison of a step's loss with the sum of its targets' losses, where a model knows its rows by heart."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from cft_ray.models.architectures import tiny_model
from cft_ray.models.function import Way, set_attention
from cft_ray.training.loss import SummedLoss
from cft_ray.training.probe import Probe, attention_of
from cft_ray.training.verdicts import random_probe


def learned(scale: float) -> tuple[SummedLoss, Probe]:
    """A model whose head is sure of what it says, and rows whose targets it says."""
    torch.manual_seed(0)
    causal = tiny_model("llama").eval()
    way = Way()
    set_attention(causal, attention_of(way)[0])
    head: Any = causal.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(scale)
    probe = random_probe()
    batch = probe.batches["free"]
    module = SummedLoss(causal, causal, way).eval()
    with torch.no_grad():
        hidden = causal.get_decoder()(batch.input_ids, position_ids=batch.position_ids, layout=batch.layout)
        said = head(hidden.last_hidden_state.flatten(0, 1)[batch.predictors]).argmax(-1)
    return module, Probe(probe.batches | {"free": replace(batch, labels=said)}, probe.rows)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1000, 1500])
def test_losses_near_zero_have_the_noise_of_their_logits(scale: float) -> None:
    module, probe = learned(scale)
    losses = probe.losses(module, Way(), torch.device("cpu"))
    assert float(losses.mean()) < 1e-2


@torch.no_grad()
def test_a_step_that_leaves_a_target_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, probe = learned(1.0)
    forward = SummedLoss.forward

    def short(self: SummedLoss, batch, summed: bool = True) -> torch.Tensor:
        some = replace(batch, predictors=batch.predictors[1:], labels=batch.labels[1:]) if summed else batch
        return forward(self, some, summed)

    monkeypatch.setattr(SummedLoss, "forward", short)
    with pytest.raises(ValueError, match="not the sum"):
        probe.losses(module, Way(), torch.device("cpu"))


class Told(torch.nn.Module):
    """Gives the losses that it is told, one after the other."""

    def __init__(self, dtype: torch.dtype, *losses: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=dtype))
        self.losses = list(losses)

    def forward(self, batch: Any, summed: bool = True) -> torch.Tensor:
        return self.losses.pop(0)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "noise", "leak"), [(torch.float32, 1e-6, 3e-5), (torch.bfloat16, 3e-4, 3e-3)])
def test_one_token_that_is_predicted_otherwise_is_a_leak_and_all_tokens_noise_is_none(dtype, noise, leak) -> None:
    """Sizes of both as they were seen on tiny models of ten architectures, with room on both sides."""
    probe = random_probe()
    generator = torch.Generator().manual_seed(0)
    before = 8 * torch.rand(24, generator=generator)
    noisy = before + noise * (1 + before) * (2 * torch.rand(24, generator=generator) - 1)
    assert not probe.leaks(Told(dtype, before, noisy), torch.device("cpu"))
    for place in (0, 11, 23):
        other = noisy.clone()
        other[place] += leak * (1 + before[place])
        assert probe.leaks(Told(dtype, before, other), torch.device("cpu"))
