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
_OWN: dict[str, dict[str, Any]] = {}
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
    if text is default:
        return maker(**changes)
    inner = type(text)(**changes)
    name = next(name for name in default.sub_configs if getattr(default, name) is text)
    return maker(**{name: inner})


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
