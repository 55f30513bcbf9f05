"""Prompts as tokens: as training lays them out, with the beginning-of-sequence token once where the tokenizer puts one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text: the beginning-of-sequence token, if the tokenizer puts one by itself, then the text's.

    A text that already begins with it, as chat templates write it, gets no second one.
    """
    if not texts:
        return []
    begin = tokenizer.bos_token_id
    begins = begin is not None and cast("list[int]", tokenizer("")["input_ids"])[:1] == [begin]
    ids = cast("list[list[int]]", tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"])
    start = [cast(int, begin)] if begins else []
    return [tokens if tokens[:1] == start else start + tokens for tokens in ids]
