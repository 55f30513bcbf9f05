"""The engine of several workers, and of offload: DeepSpeed ZeRO-3."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

from cft_ray.grid.settings import TrainingSettings
from cft_ray.training import UNUSED, group, hidden

with hidden(*UNUSED):
    import deepspeed
    from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import groups

# DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, at every step.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
# DeepSpeed's shared-memory collectives are compiled on first use (25 s, and a compiler); gloo gives the same bits.
__compatible_ops__["deepspeed_shm_comm"] = False

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""what DeepSpeed looks for in the environment, for a process that no launcher has started"""


def configuration(settings: TrainingSettings, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Gradient accumulation is left to the loop (``managed_gradient_accumulation``), because the number of micro-batches
    differs from step to step.

    Args:
        settings: of the training.
        ranks: workers.
    """
    gpu = group.device().type == "cuda"
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": gpu,
        "contiguous_gradients": True,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu}
    if settings.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": gpu}
    adam = {
        "lr": settings.learning_rate,
        "betas": [settings.beta1, settings.beta2],
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.offload == "none" or not gpu:  # DeepSpeed's own for GPUs is compiled on first use, by `nvcc`
        adam |= {"torch_adam": True, "fused": gpu}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_force_ds_cpu_optimizer": gpu and settings.offload != "none",
        "bf16": {"enabled": settings.precision == "bf16"},
        "zero_optimization": zero,
        "steps_per_print": 2**62,
    }


@contextmanager
def ready() -> Iterator[None]:
    """DeepSpeed knows the process group inside the block, and forgets it at the end."""
    # It asks for the number of CPU "devices" at every step, and runs a program to find out unless it is told LOCAL_SIZE.
    wanted = {**_ALONE, "LOCAL_SIZE": os.environ.get("LOCAL_WORLD_SIZE", "1")}
    ours = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in ours})
    try:
        deepspeed.init_distributed(dist_backend=distributed.get_backend(), verbose=False)
        yield
    finally:
        groups._release_process_group_references(group=None)
        deepspeed.comm.comm.cdb = None
        for name in ours:
            os.environ.pop(name, None)


class Zero3:
    """See `cft_ray.training.engine.Engine`."""

    def __init__(self, module: nn.Module, parameters: list[dict[str, Any]], settings: TrainingSettings, ranks: int) -> None:
        """Initialise DeepSpeed around a module whose parameters are partitioned.

        Args:
            module: what is called.
            parameters: of `engine.parameter_groups`.
            settings: of the training.
            ranks: workers.
        """
        annotated: Any = parameters  # DeepSpeed's annotation says Module
        self._engine: Any
        self._engine, *_ = deepspeed.initialize(model=module, model_parameters=annotated, config=configuration(settings, ranks))
        self._engine.train()
        self._ranks = ranks
        self.module = module
        self.device: torch.device = self._engine.device

    def __call__(self, batch: Any) -> torch.Tensor:
        """See `Engine`."""
        return self._engine(batch)

    def backward(self, loss: torch.Tensor) -> None:
        """See `Engine`."""
        self._engine.backward(loss * self._ranks, scale_wrt_gas=False)  # it divides the sum over ranks by their number

    def step(self, lr: float) -> float:
        """See `Engine`."""
        for each in self._engine.optimizer.param_groups:
            each["lr"] = lr
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def shares(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """See `Engine`."""
        optimizer = self._engine.optimizer
        flats = optimizer.fp32_partitioned_groups_flat
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                sub_group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
                state = optimizer.optimizer.state[flats[sub_group]]
                tensors = {"fp32": flats[sub_group], "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
                yield name, {key: tensor.detach().narrow(0, offset, count) for key, tensor in tensors.items()}

    def begin_restore(self, step: int) -> None:
        """See `Engine`."""
        optimizer = self._engine.optimizer
        counts_in_tensor = isinstance(optimizer.optimizer, torch.optim.AdamW)  # DeepSpeed's own AdamW counts in a number
        for flat in optimizer.fp32_partitioned_groups_flat:
            optimizer.optimizer.state[flat] = {
                "step": torch.tensor(float(step), device=flat.device) if counts_in_tensor else step,
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }

    def end_restore(self) -> None:
        """See `Engine`."""
        optimizer = self._engine.optimizer
        for sub_group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def close(self) -> None:
        """See `Engine`."""
        self._engine.destroy()
