"""LoRA in one process: what is adapted, what trains, and that the merged weights are W + (alpha / rank) B A."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.pytorch_utils import Conv1D

from cft_ray.errors import StageFailed, UserError
from cft_ray.strategies import build

PROMPT = torch.arange(3, 23)[None]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def model(**changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 40}
    return AutoModelForCausalLM.from_config(LlamaConfig(**shape, **changes)).eval()


def adapted(made: Any, **settings: Any) -> tuple[Any, Any]:
    """The strategy and the prepared model, its B no longer zero."""
    strategy = build("LoRA", {"rank": 4, "alpha": 6.0, **settings})
    prepared: Any = strategy.prepare(made, {}, 1).eval()
    with torch.no_grad():
        for name, parameter in prepared.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    return strategy, prepared


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_merged_weights_answer_as_the_adapted_model(changes):
    plain = model(**changes)
    names = set(plain.state_dict())
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    strategy, prepared = adapted(copy.deepcopy(plain))
    answers = prepared(input_ids=PROMPT).logits
    merged = {name: tensor.clone() for name, tensor in strategy.exported(prepared)}
    assert set(merged) == (names - {"lm_head.weight"} if changes.get("tie_word_embeddings") else names)
    for name, tensor in merged.items():
        assert torch.equal(tensor, before[name]) == (name.split(".")[-2] not in LINEAR or name.endswith("bias")), name
    plain.load_state_dict(merged, strict=False)
    assert not torch.allclose(answers, model(**changes)(input_ids=PROMPT).logits, atol=1e-2)
    torch.testing.assert_close(plain(input_ids=PROMPT).logits, answers, atol=1e-5, rtol=1e-5)


def test_only_adapters_train_and_are_counted():
    strategy, prepared = adapted(model(), target_modules=("q_proj", "down_proj"))
    trained = {name for name, parameter in prepared.named_parameters() if parameter.requires_grad}
    assert len(trained) == 8 and all("lora_" in name for name in trained)
    facts = strategy.facts(prepared)
    assert facts["adapted_layers"] == 4
    sizes = 2 * (4 * (32 + 32) + 4 * (48 + 32))
    assert facts["trainable_fraction"] == pytest.approx(sizes / sum(p.numel() for p in prepared.parameters()))


def test_it_begins_at_the_model_and_draws_by_the_seed():
    def first(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        prepared: Any = build("LoRA", {"rank": 4}).prepare(model(), {}, seed)
        return prepared(input_ids=PROMPT).logits, prepared.model.layers[0].self_attn.q_proj.lora_A["default"].weight

    (logits, one), (_, again), (_, other) = first(1), first(1), first(2)
    assert torch.equal(logits, model()(input_ids=PROMPT).logits)
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_the_draw_leaves_other_random_numbers_alone():
    made = model()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    build("LoRA", {"rank": 4}).prepare(made, {}, 1)
    assert torch.equal(torch.rand(3), expected)


def test_an_adapted_head_is_no_longer_tied():
    strategy, prepared = adapted(model(tie_word_embeddings=True), target_modules=("lm_head",))
    assert prepared.config.tie_word_embeddings is False and prepared.config.get_text_config().tie_word_embeddings is False
    embedding = prepared.get_input_embeddings().weight.detach().clone()
    answers = prepared(input_ids=PROMPT).logits
    merged = {name: tensor.clone() for name, tensor in strategy.exported(prepared)}
    assert torch.equal(merged["model.embed_tokens.weight"], embedding)
    plain = model(tie_word_embeddings=False)
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(input_ids=PROMPT).logits, answers, atol=1e-5, rtol=1e-5)
    assert model(tie_word_embeddings=True).config.tie_word_embeddings is True
    assert adapted(model(tie_word_embeddings=True))[1].config.tie_word_embeddings is True  # the head itself is not adapted


def test_unknown_modules_are_refused_with_those_that_there_are():
    with pytest.raises(UserError, match="no linear layers named c_attn, query") as caught:
        build("LoRA", {"target_modules": ["query", "q_proj", "c_attn"]}).prepare(model(), {}, 0)
    assert "lm_head" in str(caught.value.fix) and "up_proj" in str(caught.value.fix)


def test_a_layer_that_was_not_merged_is_an_error(monkeypatch):
    strategy, prepared = adapted(model(), target_modules=("q_proj",))
    whole = prepared.named_parameters
    hidden = "layers.1.self_attn.q_proj.base_layer.weight"
    monkeypatch.setattr(
        prepared, "named_parameters", lambda **given: ((n, p) for n, p in whole(**given) if not n.endswith(hidden))
    )
    with pytest.raises(StageFailed, match=r"1 adapted layers were not merged: model\.layers\.1\.self_attn\.q_proj"):
        list(strategy.exported(prepared))


def test_transposed_weights_are_merged_transposed():
    """GPT-2's layers keep (in, out); peft adapts them as such."""
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=40, n_positions=32)).eval()
    assert isinstance(made.transformer.h[0].mlp.c_fc, Conv1D)
    from peft import LoraConfig, inject_adapter_in_model

    plain = copy.deepcopy(made)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["c_fc"], fan_in_fan_out=True)
    prepared: Any = inject_adapter_in_model(config, made, "default")
    with torch.no_grad():
        prepared.transformer.h[0].mlp.c_fc.lora_B["default"].weight.normal_(std=0.2)
    answers = prepared(input_ids=PROMPT).logits
    merged = {name: tensor.clone() for name, tensor in build("LoRA", {"rank": 4}).exported(prepared)}
    plain.load_state_dict(merged, strict=False)
    torch.testing.assert_close(plain(input_ids=PROMPT).logits, answers, atol=1e-5, rtol=1e-5)
