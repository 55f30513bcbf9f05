"""What a loading report says, buffers, and models without weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from cft_ray.errors import UserError
from cft_ray.models import weights
from cft_ray.models.gathering import gathered
from cft_ray.models.loading import skeleton


def test_a_loading_report_is_said_with_the_first_names():
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        for names, said in (
            (["b", "a"], "a, b"),
            (list("gfedcba"), "a, b, c, d, e and 2 more"),
            (list("abcde"), "a, b, c, d, e"),
        ):
            with pytest.raises(UserError) as raised:
                weights._complete({key: [(name, 1) for name in names] if key == "mismatched_keys" else names}, Path("x"))
            assert raised.value.what.endswith(f": {said}"), raised.value.what
    computed = [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "h.0.attn.masked_bias",
        "h.0.attn.bias",
        "embeddings.position_ids",
    ]
    weights._complete({"unexpected_keys": computed, "missing_keys": None}, Path("x"))
    with pytest.raises(UserError, match="lack weights"):
        weights._complete({"missing_keys": computed}, Path("x"))


def test_buffers_are_compared_by_bit_and_type():
    model = torch.nn.BatchNorm1d(2)
    before = weights.snapshot(model)
    now = dict(model.named_buffers())
    assert weights.changed(now, before) == [] and set(before) == {"running_mean", "running_var", "num_batches_tracked"}
    assert model.running_mean is not None
    model.running_mean += 1
    assert weights.changed(now, before) == ["running_mean"]
    assert weights.changed({**before, "running_var": before["running_var"].double()}, before) == ["running_var"]
    assert weights.changed({}, before) == list(before)


def tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**shape, "eos_token_id": 2, **changes}))


def test_a_skeleton_is_tied_and_shaped_as_the_model(tmp_path):
    tiny(tie_word_embeddings=True).save_pretrained(tmp_path)
    made: Any = skeleton(str(tmp_path), dtype=torch.bfloat16)
    assert made.lm_head.weight is made.model.embed_tokens.weight and made.dtype == torch.bfloat16
    assert made.lm_head.weight.device.type == "cpu" and made.lm_head.weight.shape == (40, 32)


def test_what_is_whole_is_gathered_by_nobody(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "deepspeed.runtime.zero", None)
    parameter = torch.nn.Parameter(torch.ones(2))
    with gathered([parameter]), gathered([]):
        pass
    parameter.ds_id = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError), gathered([torch.nn.Parameter(torch.ones(2)), parameter]):
        pass
