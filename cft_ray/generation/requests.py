"""What is asked for replay and what comes back, whichever road it takes (`single`, `batches`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cft_ray.grid.settings import ReplaySampling


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Args:
        index: names it among the answers.
        tokens: token ids, the beginning-of-sequence token included.
        seed: of this answer's random numbers, in [0, 2^63).
        new_tokens: most tokens of the answer.
    """

    index: int
    tokens: list[int]
    seed: int
    new_tokens: int


@dataclass(frozen=True)
class Answer:
    """What came.

    Args:
        index: of its prompt.
        text: without special tokens.
        tokens: number of tokens generated, the end-of-sequence token included.
        finish_reason: ``stop``: the model ended it; ``length``: it ran into the limit.
    """

    index: int
    text: str
    tokens: int
    finish_reason: str


def parameters(sampling: ReplaySampling, seed: int, new_tokens: int, ends: Sequence[int]) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` for one answer, which ends at any of the ids ``ends``."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
        "max_tokens": new_tokens,
        "stop_token_ids": list(ends),
    }
