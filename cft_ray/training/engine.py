"""What drives the model through an optimizer step: whole in one process, or partitioned by DeepSpeed ZeRO-3.

One worker without offload has nothing to partition, and ZeRO-3's hooks around every module, its copies into partitions and its
collectives of one are then most of a small model's step. So it trains with plain autograd and PyTorch's AdamW (`whole`). Both
keep fp32 master weights and moments once, and both need the same memory at one rank: with bf16, 2 bytes a parameter for the
weights, 2 for the gradients, 12 for master weights and moments, and no more than `whole.AT_ONCE` gradients in fp32. A model of
7 billion parameters takes 112 GB that way; where one GPU has less, several workers or offload share it out, which is ZeRO-3's
business.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import distributed, nn

from cft_ray.errors import UserError
from cft_ray.grid.settings import TrainingSettings
from cft_ray.training import group


class Engine(Protocol):
    """A model in training on this rank."""

    device: torch.device
    module: nn.Module
    """what is called"""

    def __call__(self, batch: Any) -> torch.Tensor:
        """Forward."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this rank's part of the global batch's loss; the parts of all ranks are summed."""
        ...

    def step(self, lr: float) -> float:
        """Clip and take an optimizer step; returns the gradients' global norm before clipping."""
        ...

    def shares(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """(name, state) of every trained parameter: this rank's part of its fp32 weights and moments, as flat views.

        A parameter taken as one flat row of numbers is cut into equal parts, the last one padded, rank by rank.
        """
        ...

    def begin_restore(self, step: int) -> None:
        """Make `shares` writable before the first step; ``step``: optimizer steps that their content has behind it."""
        ...

    def end_restore(self) -> None:
        """Let the weights that compute follow the shares."""
        ...

    def close(self) -> None:
        """Free what outlives the object."""
        ...


def partitioned(settings: TrainingSettings, ranks: int) -> bool:
    """Whether the model is trained by ZeRO-3."""
    return ranks > 1 or settings.offload != "none"


@contextmanager
def ready(settings: TrainingSettings, ranks: int) -> Iterator[None]:
    """What the engine needs around it, from before the model is loaded; the process group exists."""
    if not partitioned(settings, ranks):
        yield
        return
    from cft_ray.training import zero

    with zero.ready():
        yield


def partition(module: nn.Module, settings: TrainingSettings, ranks: int) -> None:
    """Put a model where the engine wants it, in place: split over the ranks for ZeRO-3, else whole on this rank's device.

    Rank 0's values count, those of buffers too.

    Args:
        module: whole on every rank, with the right values on rank 0.
        settings: of the training.
        ranks: workers.
    """
    if not partitioned(settings, ranks):
        module.to(group.device())
        return
    from cft_ray.training.zero import configuration, deepspeed

    deepspeed.zero.Init(module=module, config_dict_or_path=configuration(settings, ranks))
    for buffer in module.buffers():
        buffer.data = buffer.data.to(group.device())
        distributed.broadcast(buffer.data, src=0)


def initialise(module: nn.Module, settings: TrainingSettings, ranks: int) -> Engine:
    """The engine around a module.

    Args:
        module: what is called; only its parameters that require gradients are given to the optimizer.
        settings: of the training.
        ranks: workers.

    Raises:
        UserError: nothing to train; weight decay together with gradients that are masked by hooks.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise UserError("the strategy freezes every parameter", where="strategy", fix="leave something to train")
    if settings.weight_decay and any(parameter._backward_hooks for parameter in trainable):
        raise UserError(
            f"weight_decay {settings.weight_decay} would change weights that the strategy freezes in part",
            where="training.weight_decay",
            fix="set it to 0 with strategies that freeze slices of a tensor",
        )
    groups = parameter_groups(module, trainable, settings.weight_decay)
    if partitioned(settings, ranks):
        from cft_ray.training.zero import Zero3

        return Zero3(module, groups, settings, ranks)
    from cft_ray.training.whole import Whole

    return Whole(module, groups, settings)


def parameter_groups(module: nn.Module, trainable: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for the optimizer: norms and biases are left out of weight decay, as transformers' `Trainer` leaves them out.

    Returns:
        dicts with ``params`` and ``weight_decay``; none of them is empty.
    """
    if not weight_decay:
        return [{"params": trainable, "weight_decay": 0.0}]
    from transformers import Trainer

    names: Any = Trainer.get_decay_parameter_names(None, module)  # type: ignore[arg-type]  # it makes no use of itself
    decaying = {id(parameter) for name, parameter in module.named_parameters() if name in set(names)}
    groups = [
        {"params": [each for each in trainable if id(each) in decaying], "weight_decay": weight_decay},
        {"params": [each for each in trainable if id(each) not in decaying], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
