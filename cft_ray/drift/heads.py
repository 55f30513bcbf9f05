"""Which rows of which tensor belong to which attention head. Pure.

The names are those of Hugging Face decoders: ``….{layer}.self_attn.{q,k,v}_proj.{weight,bias}``, and Phi-3's
``qkv_proj``, whose rows are all query heads, then all key heads, then all value heads. Other fused layouts (Falcon's and
GPT-NeoX' interleaved ``query_key_value``, GPT-2's transposed ``c_attn``) have no slices here, and who needs slices
refuses such a model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ATTENTION = re.compile(r"(?:^|\.)(\d+)\.\w*(?:attn|attention)\w*\.(q|k|v|qkv)_proj\.(?:weight|bias)$")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")


@dataclass(frozen=True)
class HeadSlice:
    """One head's rows of one tensor."""

    layer: int
    projection: str
    """q, k or v"""
    head: int
    """of the query heads for q, of the key-value heads for k and v"""
    start: int
    stop: int


@dataclass(frozen=True)
class HeadCounts:
    """The numbers that decide where a head's rows lie."""

    query: int
    key_value: int
    size: int
    """rows per head"""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "HeadCounts | None":
        """From a model's ``config.json``; None where it does not say. Raises nothing."""
        text = config.get("text_config") or config
        query, width = text.get("num_attention_heads"), text.get("hidden_size")
        if not query or not width:
            return None
        return cls(query, text.get("num_key_value_heads") or query, text.get("head_dim") or width // query)


def decoder_layer(name: str) -> int | None:
    """The number of the decoder block that a tensor belongs to, by its name; None for embeddings and the like."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def head_slices(name: str, rows: int, counts: HeadCounts | None) -> list[HeadSlice]:
    """The heads of a tensor, in the order of their rows.

    Args:
        name: the parameter's name.
        rows: its first dimension.
        counts: the model's heads.

    Returns:
        Slices that cover all rows, or an empty list for a tensor that is no (known) query, key or value projection or
        whose rows do not fit the counts.
    """
    found = _ATTENTION.search(name)
    if not found or counts is None:
        return []
    heads = {"q": counts.query, "k": counts.key_value, "v": counts.key_value}
    layout = [(projection, head) for projection in found[2] for head in range(heads[projection])]
    if len(layout) * counts.size != rows:
        return []
    return [
        HeadSlice(int(found[1]), projection, head, index * counts.size, (index + 1) * counts.size)
        for index, (projection, head) in enumerate(layout)
    ]
