"""An embedder without weights: character n-grams, folded into a few hundred dimensions by hashing.

It is there for the toy world and for machines without a hub. It sees which words two texts have in common, in whatever
order, and nothing of what they mean. Each n-gram stands for a vector of signs, the bits of its SHA-256, so the dot
product of two texts is about that of their n-gram counts (random projection with signs: Achlioptas 2003,
doi:10.1016/S0022-0000(03)00025-4), and it is the same in every process, on every machine, under every version.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule, Normalize

DIMENSION = 256
"""bits of a SHA-256"""
LENGTHS = (2, 3)
"""of the n-grams, in characters, with a space on both sides of a word; single letters would make all texts alike"""
MOST_CHARACTERS = 4096
"""of a text, where no fewer are asked for; what is beyond is cut off"""


class CharacterNgrams(InputModule):
    """Texts to sums of their n-grams' sign vectors; case is ignored."""

    save_in_root = True
    max_seq_length = MOST_CHARACTERS

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """``sentence_embedding``: [texts, `DIMENSION`] float32."""
        vectors = [_vector(f"{prompt or ''}{text}"[: self.max_seq_length]) for text in inputs]
        return {"sentence_embedding": torch.from_numpy(np.stack(vectors))}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Nothing is left to do."""
        return features

    def get_embedding_dimension(self) -> int:
        """`DIMENSION`."""
        return DIMENSION

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """There is nothing to be saved."""
        self.save_config(output_path)


def lexical() -> SentenceTransformer:
    """The embedder; its vectors have length 1, and a text without characters has no direction (zeros)."""
    return SentenceTransformer(modules=[CharacterNgrams(), Normalize()], device="cpu")


def _vector(text: str) -> np.ndarray:
    counts: Counter[str] = Counter()
    for word in text.lower().split():
        padded = f" {word} "
        for length in LENGTHS:
            counts.update(padded[start : start + length] for start in range(len(padded) - length + 1))
    total = np.zeros(DIMENSION, dtype=np.float32)
    for ngram, count in counts.items():
        total += count * _signs(ngram)
    return total


@lru_cache(maxsize=2**16)
def _signs(ngram: str) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(sha256(ngram.encode()).digest(), dtype=np.uint8))
    return bits.astype(np.float32) * 2 - 1
