"""A function on several workers under Ray Train, which starts them, watches them and ends them together.

`TorchTrainer` would do, but its configuration is a class of ``ray.train.torch``: every process that is sent it imports torch,
the controller among them, which then takes seconds to start for nothing. So the workers are told of each other here, by the
variables that PyTorch's launchers set, and join their process group themselves (`cft_ray.training.group`).

Seen on Ray 2.60: the controller, the placement group's cleaner and the dataset manager run without torch. They and the
checkpoints' synchronization actor ask for no CPU, so the workers' bundles are all that the stage takes. What remains of them
is Ray's own start.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from cft_ray.errors import StageFailed, UserError
from cft_ray.machine import devices_for
from cft_ray.plan.stage import Resources
from cft_ray.stages.deaths import PREEMPTIONS, is_preemption

RESTARTS = 2
"""times that a group is started again because a worker died"""
_OF_OTHERS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
"""words in an error that a rank meets because another one has ended"""


def run(work: Callable[[dict[str, Any]], Any], told: dict[str, Any], needs: Resources, *, name: str, storage: str) -> Any:
    """``work(told)`` on every worker; those of a group that lost one are started again.

    Args:
        work: pickled by reference; its module should not import torch.
        told: given to every worker.
        needs: workers, and what each is given.
        name: of this group; one of the same name and storage must not have been run before.
        storage: folder or URI for Ray Train's own state.

    Returns:
        What rank 0 returned.

    Raises:
        Exception: what a worker raised, as it was. It is not tried again, and ends the group.
        StageFailed: workers died more than `RESTARTS` times, or with their nodes more than `PREEMPTIONS` times.
    """
    deaths = preemptions = 0
    while True:
        trainer = DataParallelTrainer(
            work,
            train_loop_config=told,
            backend_config=Launch(needs.gpus),
            scaling_config=ScalingConfig(
                num_workers=needs.workers,
                use_gpu=needs.gpus > 0,
                resources_per_worker={"CPU": needs.cpus} | ({"GPU": needs.gpus} if needs.gpus else {}),
            ),
            # Ray Train would continue a run of the same name; ours are continued by our own checkpoints. It would also start
            # a group again whatever its workers raised.
            run_config=RunConfig(
                name=f"{name}-{deaths + preemptions}", storage_path=storage, failure_config=FailureConfig(max_failures=0)
            ),
        )
        try:
            return trainer.fit().return_value
        except TrainingFailedError as error:
            raised = _raised(error)
            if raised is not None:
                raise raised from None
            if _lost_node(error):
                preemptions += 1
            else:
                deaths += 1
            if deaths > RESTARTS or preemptions > PREEMPTIONS:
                times = f"{deaths} times, and {preemptions} nodes were lost"
                raise StageFailed(f"training workers failed {times}; the last time: {error}") from error


def _lost_node(error: TrainingFailedError) -> bool:
    """Whether a node went with the workers on it: a spot machine that was taken back, no fault of the training."""
    return isinstance(error, WorkerGroupError) and any(is_preemption(each) for each in error.worker_failures.values())


def _raised(error: TrainingFailedError) -> Exception | None:
    """What a worker's code raised by itself; None where a worker or what it needs died, which may go better next time."""
    if not isinstance(error, WorkerGroupError):
        return None
    failures = [error.worker_failures[rank] for rank in sorted(error.worker_failures)]
    ours = [each for each in failures if isinstance(each, UserError | StageFailed)]
    if ours:
        return ours[0]
    if not failures or any(isinstance(each, RayError | RayTrainError) for each in failures):
        return None
    return next((each for each in failures if not _of_others(each)), None)


def _of_others(error: Exception) -> bool:
    """Whether a rank raised because another one had ended."""
    return type(error).__module__.startswith("torch.distributed") or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _OF_OTHERS)
    )


@dataclass
class Launch(BackendConfig):
    """Tells each worker its place, as ``torchrun`` does, and what it may see.

    Args:
        gpus: of each worker.
    """

    gpus: float

    @property
    def backend_cls(self) -> type[Backend]:
        """For Ray Train."""
        return _Launcher


class _Launcher(Backend):
    share_cuda_visible_devices = True
    """ranks of a machine see each other's devices, as NCCL wants it; each takes the one of its local rank"""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, Launch)
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_enter, address, port, backend_config.gpus)


def _enter(address: str, port: int, gpus: float) -> None:
    place = get_context()
    os.environ.update(
        devices_for(gpus),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(place.get_world_rank()),
        WORLD_SIZE=str(place.get_world_size()),
        LOCAL_RANK=str(place.get_local_rank()),
        LOCAL_WORLD_SIZE=str(place.get_local_world_size()),
        NODE_RANK=str(place.get_node_rank()),
    )
