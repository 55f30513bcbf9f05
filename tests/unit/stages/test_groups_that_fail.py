"""Several workers under Ray Train: whose fault an end is, and how often a group is started again."""

from typing import Any, ClassVar

import pytest
from ray.exceptions import LocalRayletDiedError, NodeDiedError, RayActorError, WorkerCrashedError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from cft_ray.errors import StageFailed, UserError
from cft_ray.plan.stage import Resources
from cft_ray.stages import ray_train
from cft_ray.stages.deaths import PREEMPTIONS, is_preemption


class OfTorch(Exception):
    """As the process group raises it."""


OfTorch.__module__ = "torch.distributed.something"
DEAD = WorkerGroupError("x", {0: WorkerCrashedError()})
AWAY = WorkerGroupError("x", {0: RuntimeError("Connection closed by peer"), 1: NodeDiedError("gone")})
NEEDS = Resources(workers=3, cpus=2)
WRONG, MISTAKE = ZeroDivisionError("ours"), UserError("a mistake")


@pytest.fixture
def trainer(monkeypatch) -> Any:
    """In the place of Ray Train's: ends as it is told, one end after the other, and keeps what it was given."""

    class Trainer:
        ends: ClassVar[list[Any]] = []
        given: ClassVar[list[dict[str, Any]]] = []

        def __init__(self, work: Any, **given: Any) -> None:
            self.given.append(given)

        def fit(self) -> Any:
            end = self.ends.pop(0)
            if isinstance(end, Exception):
                raise end
            return type("Result", (), {"return_value": end})

    Trainer.ends, Trainer.given = [], []
    monkeypatch.setattr(ray_train, "DataParallelTrainer", Trainer)
    return Trainer


def run(needs: Resources = NEEDS) -> Any:
    return ray_train.run(print, {"told": 1}, needs, name="name", storage="/storage")


def test_a_group_that_lost_a_worker_is_started_again_under_another_name(trainer):
    trainer.ends = [DEAD, AWAY, DEAD, AWAY, "finished"]
    assert run() == "finished"
    assert [given["run_config"].name for given in trainer.given] == [f"name-{number}" for number in range(5)]
    given = trainer.given[0]
    assert given["train_loop_config"] == {"told": 1} and given["run_config"].storage_path == "/storage"
    assert given["run_config"].failure_config.max_failures == 0
    scaling = given["scaling_config"]
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker) == (3, False, {"CPU": 2})


@pytest.mark.parametrize(("gpus", "asked"), [(1, {"CPU": 1, "GPU": 1}), (0.5, {"CPU": 1, "GPU": 0.5})])
def test_workers_with_gpus(trainer, gpus, asked):
    trainer.ends = [None]
    run(Resources(workers=2, cpus=1, gpus=gpus))
    assert trainer.given[0]["scaling_config"].use_gpu and trainer.given[0]["scaling_config"].resources_per_worker == asked


@pytest.mark.parametrize(("end", "times"), [(DEAD, ray_train.RESTARTS + 1), (AWAY, PREEMPTIONS + 1)])
def test_it_is_given_up_after_so_many_deaths(trainer, end, times):
    trainer.ends = [end] * 200
    with pytest.raises(StageFailed, match="training workers failed"):
        run()
    assert len(trainer.given) == times


@pytest.mark.parametrize(
    ("failures", "raised"),
    [
        ({0: WRONG}, WRONG),
        ({1: WRONG, 0: RuntimeError("[..] Connection reset by peer")}, WRONG),
        ({0: OfTorch("timeout"), 1: WRONG}, WRONG),
        ({0: WRONG, 1: MISTAKE}, MISTAKE),
        ({0: WorkerCrashedError(), 1: MISTAKE}, MISTAKE),
        ({0: ValueError("gloo")}, "itself"),
    ],
    ids=str,
)
def test_what_a_worker_raises_by_itself_is_raised_at_once(trainer, failures, raised):
    trainer.ends = [WorkerGroupError("x", failures)]
    with pytest.raises(Exception) as caught:
        run()
    assert caught.value is (failures[0] if raised == "itself" else raised)


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError("x", {0: WRONG, 1: WorkerCrashedError()}),
        WorkerGroupError("x", {0: RuntimeError("NCCL error"), 1: OfTorch("gone")}),
        WorkerGroupError("x", {}),
        ControllerError(ValueError("of the controller")),
        TrainingFailedError("x"),
    ],
    ids=str,
)
def test_what_others_deaths_bring_about_is_tried_again(trainer, error):
    trainer.ends = [error, "finished"]
    assert run() == "finished"


@pytest.mark.parametrize(
    ("error", "node"),
    [
        (NodeDiedError("gone"), True),
        (LocalRayletDiedError(), True),
        (WorkerCrashedError(), False),
        (RayActorError(error_msg="The actor died because its node has died."), True),
        (RayActorError(error_msg="the node was terminated"), True),
        (RayActorError(error_msg="Node died"), True),
        (RayActorError(error_msg="the worker process has died"), False),
        (RayActorError(error_msg="", preempted=True), True),
        (ValueError("its node has died"), False),
    ],
    ids=str,
)
def test_whose_fault_a_death_is(error, node):
    assert is_preemption(error) is node
