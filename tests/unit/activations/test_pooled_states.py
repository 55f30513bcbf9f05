"""Means over tokens as the blocks run, of a decoder whose states are known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cft_ray.activations.measure import stream_activations
from cft_ray.activations.prompts import Prompts
from cft_ray.errors import UserError

TOKENS = [[1], [2, 4, 9], [3, 5]]


class Block(torch.nn.Module):
    """Adds ``more``; gives a tuple, as blocks of older architectures do."""

    def __init__(self, more: float) -> None:
        super().__init__()
        self.more = more

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden + self.more, torch.full_like(hidden, 7.0)


def model(*more: float) -> Any:
    """States are the token and its square; padding is a large token."""
    blocks = [Block(each) for each in more]

    def decoder(input_ids: torch.Tensor, use_cache: bool) -> None:
        hidden = torch.stack([input_ids.float(), input_ids.float() ** 2], -1)
        for block in blocks:
            hidden, _ = block(hidden)

    return SimpleNamespace(blocks=blocks, decoder=decoder, pad_id=1000, device="cpu", folder="/model")


@pytest.mark.parametrize(("batch_tokens", "parts"), [(1, [[1], [2], [0]]), (6, [[1, 2], [0]]), (9, [[1, 2, 0]])])
def test_means_are_those_over_each_prompts_own_tokens(batch_tokens, parts):
    prompts = Prompts(["a", "b", "c"], ["en"] * 3, TOKENS, [False] * 3, 3)
    found = list(stream_activations(model(1.0, 10.0), prompts, batch_tokens))
    assert [part.prompts for part in found] == parts
    assert [part.tokens for part in found] == [sum(len(TOKENS[row]) for row in part) for part in parts]
    for part in found:
        means = np.array([[np.mean(TOKENS[row]), np.mean(np.square(TOKENS[row]))] for row in part.prompts])
        np.testing.assert_allclose(part.means, [means + 1, means + 11], rtol=1e-6)


def test_the_layer_and_the_prompt_that_are_not_finite_are_named():
    prompts = Prompts(["a", "b", "c"], ["en"] * 3, [[1], [9 * 10**18], [3]], [False] * 3, 3)
    with pytest.raises(UserError, match=r"layer 2 are not finite \(NaN or infinity\), at prompt b"):
        list(stream_activations(model(0.0, 0.0, 3e38), prompts, 3))
