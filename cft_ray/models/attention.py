"""Attention that computes what a model asks of it, or says that it does not.

transformers hands a layer's arguments to whatever attention is set, and its own `sdpa` takes no notice of those that it does
not know: Gemma 2 loses the cap on its scores, gpt-oss the sink of its softmax, and nothing says so. Here an argument that may
change the result is known or refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PLAIN = "cft_ray_sdpa"
EAGER = "eager"
"""each model's own: the reference"""

_HARMLESS = frozenset(
    {
        "position_ids",  # applied before
        "position_embeddings",
        "cache_position",
        "past_key_values",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "deterministic",
        "layer_idx",
    }
)
"""arguments that layers hand on and that do not change what attention computes"""


def refuse_unknown(given: Mapping[str, Any], what: str) -> None:
    """Refuse arguments of an attention that may change its result.

    Args:
        given: those that it does not know.
        what: for messages: the attention.

    Raises:
        ValueError: one of them says something and is not known to be harmless.
    """
    if unknown := sorted(name for name, value in given.items() if value is not None and name not in _HARMLESS):
        raise ValueError(f"attention is given {', '.join(unknown)}, which is not known for {what}")


def plain(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa` on padded rows: [rows, heads, width, head size] in, [rows, width, heads, head size] out.

    Args:
        sliding_window: is in the mask.
        others: nothing that would change the result.

    Raises:
        ValueError: see `refuse_unknown`.
    """
    refuse_unknown(others, "PyTorch's scaled_dot_product_attention")
    return sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        position_bias=position_bias,
    )


AttentionInterface.register(PLAIN, plain)
AttentionMaskInterface.register(PLAIN, sdpa_mask)
