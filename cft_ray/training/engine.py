"""The DeepSpeed ZeRO-3 engine of a training: processes, configuration, initialisation."""

import os
import socket
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
from deepspeed.ops import __compatible_ops__
from torch import distributed, nn

from cft_ray.errors import StageFailed, UserError
from cft_ray.grid.settings import TrainingSettings

T = TypeVar("T")

# DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, at every step.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
# DeepSpeed's shared-memory collectives are compiled on first use (25 s, and a compiler); gloo gives the same bits.
__compatible_ops__["deepspeed_shm_comm"] = False


def device() -> torch.device:
    """This rank's device."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def join(timeout: timedelta = timedelta(minutes=30)) -> tuple[int, int]:
    """Join the process group that the launcher describes in the environment; without one, a group of one process.

    Returns:
        (rank, ranks).
    """
    if not distributed.is_initialized():
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        if "RANK" not in os.environ:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                alone["MASTER_PORT"] = str(probe.getsockname()[1])
            os.environ.update(alone)
        if device().type == "cuda":
            torch.cuda.set_device(device())
        distributed.init_process_group("nccl" if device().type == "cuda" else "gloo", timeout=timeout)
    # DeepSpeed asks for the number of CPU "devices" at every step, and runs a program to find out unless it is told.
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    deepspeed.init_distributed(dist_backend=distributed.get_backend(), verbose=False)
    return distributed.get_rank(), distributed.get_world_size()


def is_first_of_machine() -> bool:
    """Whether this is the rank that prepares files for all ranks of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def configuration(settings: TrainingSettings, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Gradient accumulation is left to the loop (``managed_gradient_accumulation``), because the number of micro-batches
    differs from step to step.

    Args:
        settings: of the training.
        ranks: workers.
    """
    gpu = device().type == "cuda"
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
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "optimizer": {"type": "AdamW", "params": adam if gpu else {**adam, "torch_adam": True}},
        "zero_force_ds_cpu_optimizer": gpu and settings.offload != "none",
        "bf16": {"enabled": settings.precision == "bf16"},
        "zero_optimization": zero,
        "steps_per_print": 2**62,
    }


def partition(module: nn.Module, settings: TrainingSettings, ranks: int) -> None:
    """Split a model's parameters over the ranks, in place; rank 0's values count, those of buffers too.

    Args:
        module: whole on every rank, with the right values on rank 0.
        settings: of the training.
        ranks: workers.
    """
    deepspeed.zero.Init(module=module, config_dict_or_path=configuration(settings, ranks))
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device())
        distributed.broadcast(buffer.data, src=0)


def together(work: Callable[[], T]) -> T:
    """Do something on every rank; an error that the user can mend, on any of them, is raised on all.

    Raises:
        UserError, StageFailed: of the first rank that has one.
    """
    problem: Exception | None = None
    result: Any = None
    try:
        result = work()
    except (UserError, StageFailed) as error:
        problem = error
    problems: list[Exception | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(problems, problem)
    for error in problems:
        if error is not None:
            raise error
    return result


def from_first(work: Callable[[], T]) -> T:
    """Do something on rank 0 and tell all ranks the result, or the error that the user can mend."""
    outcome = [together(lambda: work() if distributed.get_rank() == 0 else None)]
    distributed.broadcast_object_list(outcome, src=0)
    return outcome[0]  # type: ignore[return-value]


def initialise(module: nn.Module, settings: TrainingSettings, ranks: int) -> Any:
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
    config = configuration(settings, ranks)
    parameters: Any = trainable  # DeepSpeed's annotation says Module
    engine, *_ = deepspeed.initialize(model=module, model_parameters=parameters, config=config)
    return engine
