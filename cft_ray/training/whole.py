"""The engine of one worker: plain autograd, AdamW, and fp32 master weights where the model computes in bf16."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from cft_ray.grid.settings import TrainingSettings
from cft_ray.training import group

AT_ONCE = 2**28
"""gradients that are held in fp32 at a time beside bf16 ones (1 GiB)"""


class Whole:
    """See `cft_ray.training.engine.Engine`."""

    def __init__(self, module: nn.Module, groups: list[dict[str, Any]], settings: TrainingSettings) -> None:
        """Move a module to this process's device and precision.

        Args:
            module: what is called.
            groups: of `engine.parameter_groups`.
            settings: of the training.
        """
        self.device = group.device()
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        for parameter in module.parameters():  # buffers keep their precision: rotary frequencies need it
            parameter.data = parameter.data.to(dtype)
        self.module = module.to(self.device)
        self._limit = settings.max_grad_norm
        self._master: dict[nn.Parameter, torch.Tensor] = {}
        for each in groups:
            for parameter in each["params"]:
                self._master[parameter] = parameter if dtype == torch.float32 else parameter.detach().float()
        self._optimizer = torch.optim.AdamW(
            [{**each, "params": [self._master[parameter] for parameter in each["params"]]} for each in groups],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )

    def __call__(self, batch: Any) -> torch.Tensor:
        """See `Engine`."""
        return self.module(batch)

    def backward(self, loss: torch.Tensor) -> None:
        """See `Engine`."""
        loss.backward()

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """See `Engine`."""
        for each in self._optimizer.param_groups:
            each["lr"] = lr
        gradients = {}
        for parameter in self._master:  # without a gradient in this batch it still moves by its moments, as under ZeRO-3
            gradients[parameter] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None
        norm = torch.stack([torch.linalg.vector_norm(each, dtype=torch.float64) for each in gradients.values()]).norm()
        scale = None if self._limit is None else 1 / ((norm + 1e-6) / self._limit).clamp(min=1).float()
        for some in self._portions():
            for parameter in some:
                gradient = gradients.pop(parameter).float()
                self._master[parameter].grad = gradient if scale is None else gradient.mul_(scale)
            self._optimizer.step()  # parameters without a gradient are left as they are
            for parameter in some:
                master = self._master[parameter]
                master.grad = None
                if master is not parameter:
                    parameter.copy_(master)
        return float(norm)

    def shares(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """See `Engine`."""
        for name, parameter in self.module.named_parameters():
            if (master := self._master.get(parameter)) is not None:
                state = self._optimizer.state[master]
                tensors = {"fp32": master, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
                yield name, {key: tensor.detach().view(-1) for key, tensor in tensors.items()}

    def begin_restore(self, step: int) -> None:
        """See `Engine`."""
        for master in self._master.values():
            self._optimizer.state[master] = {
                "step": torch.tensor(float(step), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    @torch.no_grad()
    def end_restore(self) -> None:
        """See `Engine`."""
        for parameter, master in self._master.items():
            if master is not parameter:
                parameter.copy_(master)

    def close(self) -> None:
        """See `Engine`."""

    def _portions(self) -> Iterator[list[nn.Parameter]]:
        """The trained parameters, as many at a time as may have a gradient in fp32; all of them where that is no copy."""
        some: list[nn.Parameter] = []
        size = 0
        for parameter, master in self._master.items():
            if some and master is not parameter and size + parameter.numel() > AT_ONCE:
                yield some
                some, size = [], 0
            some.append(parameter)
            size += parameter.numel()
        yield some
