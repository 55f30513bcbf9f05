"""What a model does to its head's output, there and back."""

import types

import pytest
import torch

from cft_ray.models.outputs import Outputs, outputs_of


class _Config(types.SimpleNamespace):
    def get_text_config(self) -> "_Config":
        return self


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Outputs(1.0, None)),
        ({"logit_scale": 0.25}, Outputs(0.25, None)),
        ({"logit_scale": 0.5, "lm_head_multiplier": 3}, Outputs(1.5, None)),
        ({"logits_scaling": 8.0}, Outputs(0.125, None)),
        ({"logit_scale": 2.0, "logits_scaling": 4.0}, Outputs(0.5, None)),
        ({"final_logit_softcapping": 30.0}, Outputs(1.0, 30.0)),
        ({"output_logit_soft_cap": 15}, Outputs(1.0, 15.0)),
        ({"logits_soft_cap": 7.0, "final_logit_softcapping": None}, Outputs(1.0, 7.0)),
        ({"logit_scale": None, "logits_scaling": 0, "final_logit_softcapping": 0.0}, Outputs(1.0, None)),
        ({"logit_scale": True, "final_logit_softcapping": "30"}, Outputs(1.0, None)),
    ],
)  # fmt: skip
def test_scales_and_caps_are_read_from_the_configuration(config, expected):
    assert outputs_of(_Config(**config)) == expected


@pytest.mark.parametrize("outputs", [Outputs(), Outputs(0.25), Outputs(1.0, 3.0), Outputs(2.0, 3.0)])
def test_the_way_back_is_the_gradient_of_the_way_there(outputs):
    torch.manual_seed(0)
    given = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    kept = given.detach().clone()
    logits = outputs(given)
    expected = kept * outputs.scale
    if outputs.cap is not None:
        expected = outputs.cap * torch.tanh(expected / outputs.cap)
    torch.testing.assert_close(logits.detach(), expected)
    assert torch.equal(given.detach(), kept)  # not in place
    wanted = torch.randn(4, 5, dtype=torch.float64)
    logits.backward(wanted)
    assert given.grad is not None
    torch.testing.assert_close(outputs.back(wanted.clone(), logits.detach()), given.grad)
