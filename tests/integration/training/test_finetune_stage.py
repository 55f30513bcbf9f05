"""The `finetune` stage: in one process, which is killed or kept, and under Ray Train with two workers."""

import os
import random
import signal
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from alone import Alone
from ray.exceptions import RayError
from safetensors.torch import load_file

from cft_ray.errors import StageFailed, UserError
from cft_ray.grid.loggers import Logger
from cft_ray.grid.settings import ScratchModel, Template, TrainingSettings
from cft_ray.plan.specs import FinetuneSpec, StrategyRef
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages import finetune

STEPS = 300
KEPT = ("none", "optimizer", "none")
"""`offload` of trainings that one process does"""
SHAPE = ScratchModel(hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=64, max_positions=128)
TRAINING = TrainingSettings(learning_rate=1e-3, steps=STEPS, batch_size=4, precision="fp32", max_length=100, checkpoint_every=5)


class FolderContext(Alone):
    """Reported rows and the processes that were heard of are files."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("reported", "pids"):
            (self.root / name).mkdir()

    def report(self, table, rows, sequence):
        pq.write_table(pa.Table.from_pylist(list(rows)), self.root / "reported" / f"{table}-{sequence}-{time.time_ns()}.parquet")

    def progress(self, **values):
        (self.root / "pids" / str(os.getpid())).touch()


def context(root, name, workers, loggers=(), data=None, strategy=None, **changes):
    training = TRAINING.model_copy(update=changes)
    spec = FinetuneSpec(scratch=SHAPE, template=Template(name="plain"), training=training, strategy=strategy)
    stage = Stage(spec=spec, inputs={"data": "0" * 64}, resources=Resources(workers=workers, cpus=1))
    return FolderContext(root / name, stage, {"data": data or root / "data"}, loggers=loggers)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    (folder / "data").mkdir()
    generator = random.Random(0)
    constant = {"language": "en", "system": "", "input": ""}
    rows = [{"id": str(i), "instruction": f"say {i}", "output": "ab" * generator.randint(1, 30), **constant} for i in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "rows.parquet")
    return folder


@pytest.fixture(scope="module")
def trained(root, ray_session):
    """Two workers, undisturbed."""
    world = context(root, "two", workers=2, loggers=(Logger(name="tensorboard", folder=str(root / "tensorboard")),))
    return world, finetune.run(world)


def losses(world):
    return pq.read_table(world.output / "tables" / "steps.parquet").column("loss").to_pylist()


def test_artifact_outputs_and_live_rows(root, trained):
    world, outputs = trained
    steps = pq.read_table(world.output / "tables" / "steps.parquet")
    assert steps.column("step").to_pylist() == list(range(1, STEPS + 1))
    assert outputs["steps"] == STEPS and outputs["samples"] == 4 * STEPS and outputs["rows"] == 30
    assert outputs["tokens"] == sum(steps.column("tokens").to_pylist())
    assert outputs["loss_last"] == losses(world)[-1] < outputs["loss_first"]
    assert (outputs["trainable_fraction"], outputs["frozen_fraction"]) == (1, 0)
    reported = pq.ParquetDataset(world.root / "reported").read()
    assert sorted(reported.column("step").to_pylist()) == list(range(1, STEPS + 1))
    assert {path.name for path in world.output.iterdir()} == {"model", "tables"}
    assert list((root / "tensorboard").rglob("events*"))


def test_one_worker_equals_ray_trains_bit_for_bit_also_after_a_kill(root, ray_session):
    """The same loop in a process of Ray Train's and in the stage's; the stage's process is killed and the stage run again."""
    reference, killed = context(root, "group of one", workers=1), context(root, "killed", workers=1)
    finetune._in_group(reference)
    killer = threading.Thread(target=kill_rank_0, args=(killed.root,))
    killer.start()
    with pytest.raises(RayError):
        finetune.run(killed)
    killer.join()
    assert not (killed.output / "model").exists()
    outputs = finetune.run(killed)
    assert len(list((killed.root / "pids").iterdir())) == 2  # a second process went on
    assert losses(killed) == losses(reference)
    ours, theirs = (load_file(one.output / "model" / "model.safetensors") for one in (killed, reference))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert outputs["steps"] == STEPS


def test_one_process_serves_one_training_after_the_other_and_they_are_bit_identical(root, ray_session):
    """Offload in between, which takes DeepSpeed into the process and out again."""
    worlds = [context(root, f"again {number}", workers=1, offload=offload) for number, offload in enumerate(KEPT)]
    for world in worlds:
        finetune.run(world)
    pids = {path.name for world in worlds for path in (world.root / "pids").iterdir()}
    assert len(pids) == 1
    first, partitioned, second = worlds
    assert losses(first) == losses(second)
    assert losses(partitioned) == pytest.approx(losses(first), abs=1e-4)
    ours, theirs = (load_file(one.output / "model" / "model.safetensors") for one in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def launched():
    """What of the environment says how a process group is joined: vLLM's engine, next in the process, reads it too."""
    parts = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "NODE_RANK")
    return {name: value for name, value in os.environ.items() if name.startswith(parts)}


def test_a_process_is_left_as_it_was_found(root, tmp_path):
    before = (launched(), torch.get_num_threads(), torch.get_rng_state())
    for number, offload in enumerate(KEPT):
        world = context(tmp_path, f"left {number}", workers=1, offload=offload, steps=12, data=root / "data")
        finetune.alone(world, None)
        assert not torch.distributed.is_initialized()
    assert launched() == before[0] and torch.get_num_threads() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_an_error_of_one_worker_ends_the_group_with_its_whole_message(root, ray_session):
    world = context(root, "broken", workers=2, strategy=StrategyRef(use="onesided:FailsOnOne", version=1))
    with pytest.raises(ZeroDivisionError) as caught:  # rather than a collective's half hour
        finetune.run(world)
    assert str(caught.value) == "planted\non one rank"
    assert "onesided.py" in "".join(caught.value.__notes__)  # the traceback
    groups = [path.name for path in (world.root / "checkpoints" / "ray").iterdir() if path.is_dir()]
    assert len(groups) <= 1  # not started again


def test_a_rank_that_computes_another_function_ends_the_training_before_its_first_step(root, ray_session):
    world = context(root, "turned", workers=2, strategy=StrategyRef(use="onesided:ComputesOtherwiseOnOne", version=1))
    with pytest.raises(StageFailed, match=r"another function than the model on rank 1: loss \d"):
        finetune.run(world)
    assert not list((world.root / "reported").iterdir()) and not (world.output / "model").exists()


def kill_rank_0(root):
    """`kill -9` of the worker that reports, once a checkpoint exists."""
    while not list(root.glob("checkpoints/steps/step-*/marker.json")) or not list(root.glob("pids/*")):
        time.sleep(0.02)
    os.kill(int(next(root.glob("pids/*")).name), signal.SIGKILL)


def test_a_users_mistake_is_raised_as_such(root, ray_session):
    world = context(root, "refused", workers=1, max_length=5, long_rows="refuse")
    with pytest.raises(UserError):
        finetune.run(world)
    assert not (world.output / "model").exists()
