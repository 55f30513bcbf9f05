"""What a model does to its head's output before it predicts: a scale and a soft cap, read from its configuration.

Whoever applies the head itself, in order not to hold all logits, has to do the same. That these two are all is not
believed but checked (`cft_ray.models.function`).
"""

from dataclasses import dataclass
from typing import Any

import torch

_FACTORS = ("logit_scale", "lm_head_multiplier")  # Cohere; Falcon-H1
_DIVISORS = ("logits_scaling",)  # Granite, HyperCLOVA X
_CAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")  # Gemma; xLSTM; RecurrentGemma


@dataclass(frozen=True)
class Outputs:
    """logits = cap · tanh(scale · head / cap); without a cap, scale · head."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Of what the head gives, any shape; differentiable, a new tensor unless there is nothing to do."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def back(self, gradient: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        """The gradient of what the head gave, from that of the logits, which is overwritten.

        Args:
            gradient: of the logits.
            logits: as `__call__` returned them; used only where there is a cap.
        """
        if self.cap is not None:
            assert logits is not None
            gradient *= 1 - (logits / self.cap) ** 2
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def outputs_of(config: Any) -> Outputs:
    """As the configuration says.

    Args:
        config: transformers' configuration of the model.
    """
    config = config.get_text_config()
    scale = 1.0
    for name in _FACTORS:
        scale *= _number(config, name) or 1.0
    for name in _DIVISORS:
        scale /= _number(config, name) or 1.0
    return Outputs(scale, next((cap for name in _CAPS if (cap := _number(config, name))), None))


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
