"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685), a baseline of the study: rank 64 in bf16.

The study states neither alpha, nor the adapted modules, nor the learning rate. Full fine-tuning's 1e-6 is too low for
LoRA to learn; the grid's entry sets `training.learning_rate` beside these settings. Keeps both constraints: the Phase 1
weights are in the model that is trained, frozen, and not held beside it.
"""

from pydantic import Field

from cft_ray.strategies.base import Strategy


class LowRank(Strategy):
    """LoRA: trains W + (alpha / rank)·B·A with W frozen; the finished model has the product merged into W."""

    rank: int = Field(default=64, gt=0, description="rank of B·A")
    alpha: float = Field(default=128.0, gt=0, description="scale of B·A is alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the input of A")
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="last part of the names of the linear layers that are adapted",
    )
