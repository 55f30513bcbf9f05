"""KL(left‖right) of next-token distributions from last hidden states, a block of positions at a time.

A block has at most `BLOCK` logits a side, so memory does not grow with the number of tokens; a single position's row over
the vocabulary is the least that can be held. With p and q the logits less their largest, Z = Σ exp,

    KL = Σ exp(p) (p - q) / Z_p - log Z_p + log Z_q.

Nothing is normalised first: the rounding of two log-sum-exps would enter every term. In float32 the result is good to
about 1e-6 nats, and exactly 0 for equal logits.
"""

from collections.abc import Callable

import torch

BLOCK = 2**23
"""logits a side in one block: 32 MiB in float32; three such arrays are held at a time"""


Scores = Callable[[torch.Tensor], torch.Tensor]
"""last hidden states [positions, hidden size] -> a new array of logits [positions, vocabulary], float32"""


def divergences(left: torch.Tensor, right: torch.Tensor, scores: tuple[Scores, Scores], vocabulary: int) -> torch.Tensor:
    """KL(left‖right) at each position.

    Args:
        left: [positions, hidden size] last hidden states of the left model.
        right: [positions, hidden size] of the right model.
        scores: of the two models.
        vocabulary: logits of a position.

    Returns:
        [positions] float64, in nats.
    """
    found = torch.empty(len(left), dtype=torch.float64, device=left.device)
    step = max(1, BLOCK // vocabulary)
    for start in range(0, len(left), step):
        block = slice(start, start + step)
        found[block] = _block(scores[0](left[block]), scores[1](right[block]))
    return found


def _block(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Of logits, which are overwritten; a function, so that a block's arrays are gone before the next one's are made."""
    p -= p.amax(-1, keepdim=True)
    q -= q.amax(-1, keepdim=True)
    weights = p.exp()
    mean = p.sub_(q).mul_(weights).sum(-1).double() / (total := weights.sum(-1).double())
    return mean - total.log() + q.exp_().sum(-1).double().log()
