"""Plain attention, and what it is not given."""

import types
from typing import Any

import pytest
import torch

from cft_ray.models.attention import plain, refuse_unknown


def test_an_argument_that_may_change_the_result_is_refused():
    refuse_unknown({"position_ids": 1, "use_cache": True, "softcap": None}, "x")
    with pytest.raises(ValueError, match="attention is given s_aux, softcap, which is not known for x"):
        refuse_unknown({"softcap": 30.0, "s_aux": 1, "layer_idx": 3}, "x")


def test_plain_attention_is_pytorchs():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    module: Any = types.SimpleNamespace(is_causal=True, training=False, num_key_value_groups=1)
    found, nothing = plain(module, query, key, value, None, scaling=0.3, use_cache=False)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2))
    assert nothing is None
    with pytest.raises(ValueError, match="softcap"):
        plain(module, query, key, value, None, softcap=30.0)
