"""A model whose predictions are no numbers (diverged weights, an overflow in float16) ends a stage: it has no score."""

from typing import TYPE_CHECKING

from cft_ray.errors import UserError

if TYPE_CHECKING:
    import torch

LOGITS = "NaNs detected in logits"
"""What vLLM says of a step that gave no numbers (``VLLM_RAISE_ON_LOGIT_NANS``)."""


def not_finite(model: str) -> UserError:
    """The error to raise.

    Args:
        model: its folder.
    """
    return UserError(
        "the model's predictions are not finite (NaN or infinity)",
        where=model,
        fix="check its weights; where they are finite, a wider dtype (bfloat16, float32)",
    )


def finite(tensor: "torch.Tensor") -> bool:
    """Whether all numbers of a tensor are finite.

    By its least and its greatest, which NaN and infinity are themselves: one pass without a copy. `torch.isfinite` makes
    several, and in bfloat16 takes thirty times as long.

    Args:
        tensor: of real numbers, any shape.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # of float8 nothing is computed
    return all(bool(end.isfinite()) for end in wide.aminmax())
