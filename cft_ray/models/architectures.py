"""Every causal-LM architecture of the installed transformers, built tiny: what the table in `docs/models.md` is made on.

A configuration is made small by the names that transformers gives to sizes. What an architecture names in its own way
stands in `_OWN`. Weights are drawn wide, so that what an architecture does with scores, logits and neighbours shows in
its losses.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "word_embed_proj_dim": 64,
    "embedding_size": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "n_inner": 96,
    "d_ff": 96,
    "dim_ff": 96,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "moe_intermediate_size": 32,
    "expert_dim": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "decoder_layers": 4,
    "encoder_layers": 1,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "sliding_window": 6,
    "attention_chunk_size": 8,
    "mamba_d_state": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "state_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT: dict[str, Any] = {"head_dim": 16, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
"""of attention over a compressed cache: heads are as many as queries, and rotary positions have a size of their own"""
_TURNS = ["sliding_attention", "full_attention"] * 2
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear", "minicpm3"),
        _LATENT,
    ),
    "youtu": {"head_dim": 16, "num_key_value_heads": 4},
    "longcat_flash": {**_LATENT, "expert_ffn_hidden_size": 32, "ffn_hidden_size": 96, "zero_expert_num": 2},
    "codegen": {"rotary_dim": 16},
    "gptj": {"rotary_dim": 16},
    "cohere_compass_text": {"layer_types": _TURNS},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_groups": 1},
    "gemma3n_text": {
        "layer_types": _TURNS,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 300,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {"vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 32},
    "hunyuan_v1_moe": {"head_dim": 32},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 1, "moe_shared_expert_intermediate_size": 32},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "reformer": {"is_decoder": True},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"n_groups": 1},
    "ministral": {"head_dim": 32},
}
STANDARD_DEVIATION = 0.15
LARGEST = 5_000_000
"""parameters of a tiny model"""


def architectures() -> list[str]:
    """transformers' names of the model types that have a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(kind: str, vocabulary: int = VOCABULARY) -> Any:
    """A small configuration of a model type, with short windows and what is off by default and changes results turned on.

    Args:
        kind: one of `architectures`.
        vocabulary: its tokens.

    Raises:
        Exception: whatever transformers raises where the type cannot be made small this way.
    """
    maker: Any = CONFIG_MAPPING[kind]
    default = maker()
    text = default.get_text_config(decoder=True)
    changes = _changes(type(text), text.to_dict(), {"vocab_size": vocabulary, **_OWN.get(kind, {})})
    name = next((name for name in default.sub_configs if getattr(default, name) is text), None)
    if name is None:  # a text model, or the decoder of what also has an encoder
        return maker(**_changes(maker, default.to_dict(), {"vocab_size": vocabulary, **_OWN.get(kind, {})}))
    return maker(**{name: type(text)(**changes)})


def tiny_model(kind: str, seed: int = 0, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """A tiny model in float32, its weights drawn with `STANDARD_DEVIATION`.

    Raises:
        Exception: see `tiny_config`.
    """
    config = tiny_config(kind, vocabulary)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"is not made small by the usual names: {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                parameter.data = torch.zeros_like(parameter)
            if parameter.ndim >= 2 and "conv" not in name:
                torch.nn.init.normal_(parameter, std=STANDARD_DEVIATION)
            elif "sink" in name or name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def _changes(kind: type, default: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    known = {*default, *inspect.signature(kind.__init__).parameters, *getattr(kind, "__annotations__", ())}
    sizes = {name: value for name, value in _SIZES.items() if name in known and default.get(name, 0) is not None}
    layers = sizes.get("num_hidden_layers", 4)
    for name, value in default.items():
        if isinstance(value, list) and name in ("layer_types", "mlp_layer_types") and len(value) > layers:
            sizes[name] = _mixed(value, layers)
        elif (isinstance(value, float) and "dropout" in name) or name.endswith("pdrop"):
            sizes[name] = 0.0
    return {**sizes, **own}


def _mixed(types: list[Any], layers: int) -> list[Any]:
    """As many types as there are, each at least once, in the order of their first appearance."""
    kinds = list(dict.fromkeys(types))
    return [kinds[place % len(kinds)] for place in range(layers)]
