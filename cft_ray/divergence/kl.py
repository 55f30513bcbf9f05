"""KL(left‖right) of next-token distributions from last hidden states, a block of positions at a time.

A block has at most `BLOCK` logits a side, so memory does not grow with the number of tokens; a single position's row over
the vocabulary is the least that can be held. With p and q the logits less their largest, Z = Σ exp,

    KL = Σ exp(p) (p - q) / Z_p - log Z_p + log Z_q.

Nothing is normalised first: the rounding of two log-sum-exps would enter every term. In float32 the result is good to
about 1e-6 nats, and exactly 0 for equal logits.
"""

import torch
from torch import nn

BLOCK = 2**23
"""logits a side in one block: 32 MiB in float32; three such arrays are held at a time"""


def divergences(left: torch.Tensor, left_head: nn.Module, right: torch.Tensor, right_head: nn.Module) -> torch.Tensor:
    """KL(left‖right) at each position.

    Args:
        left: [positions, hidden size] what the left model's head is applied to.
        left_head: a linear layer, hidden size -> vocabulary.
        right: [positions, hidden size] of the right model.
        right_head: as ``left_head``, with as many rows.

    Returns:
        [positions] float64, in nats.
    """
    found = torch.empty(len(left), dtype=torch.float64, device=left.device)
    step = max(1, BLOCK // _weight(left_head).shape[0])
    for start in range(0, len(left), step):
        block = slice(start, start + step)
        found[block] = _block(logits(left[block], left_head), logits(right[block], right_head))
    return found


def logits(hidden: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """[positions, vocabulary] float32. A GPU does not round half-precision products: a bfloat16 logit is off by up to 0.4 %."""
    weight, bias = _weight(head), getattr(head, "bias", None)
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        product = torch.mm(hidden, weight.T, out_dtype=torch.float32)
        return product if bias is None else product.add_(bias)
    return nn.functional.linear(hidden, weight, bias).float()


def _block(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Of logits, which are overwritten; a function, so that a block's arrays are gone before the next one's are made."""
    p -= p.amax(-1, keepdim=True)
    q -= q.amax(-1, keepdim=True)
    weights = p.exp()
    mean = p.sub_(q).mul_(weights).sum(-1).double() / (total := weights.sum(-1).double())
    return mean - total.log() + q.exp_().sum(-1).double().log()


def _weight(head: nn.Module) -> torch.Tensor:
    assert isinstance(head.weight, torch.Tensor)
    return head.weight
