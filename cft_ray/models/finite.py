"""A model whose predictions are no numbers (diverged weights, an overflow in float16) ends a stage: it has no score."""

from cft_ray.errors import UserError

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
