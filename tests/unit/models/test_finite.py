"""Whether all numbers of a tensor are finite, against `torch.isfinite`."""

import pytest
import torch

from cft_ray.models.finite import finite

SIZES = (1, 7, 8, 33, 1000)
"""below, at and beyond what a processor takes at once"""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("size", SIZES)
def test_one_number_that_is_none_is_found_wherever_it_stands(dtype, size):
    largest = torch.finfo(dtype).max
    numbers = torch.linspace(-1, 1, size, dtype=torch.float64).mul(largest).to(dtype)
    assert finite(numbers)
    for value in (torch.nan, torch.inf, -torch.inf):
        for place in {0, size // 2, size - 1}:
            spoiled = numbers.float() if dtype == torch.float8_e5m2 else numbers.clone()
            spoiled[place] = value
            assert not finite(spoiled.to(dtype)), (value, place)


def test_shapes_and_types_without_such_numbers():
    assert (
        finite(torch.zeros(0, 3)) and finite(torch.tensor(2.0)) and finite(torch.tensor([1, 2])) and finite(torch.tensor([True]))
    )
    assert not finite(torch.tensor(torch.nan))
    assert not finite(torch.tensor([[1.0, 2.0], [torch.inf, 0.0]]).t())
