"""The `finetune` stage under Ray Train: two workers, one of them killed in the middle."""

import os
import random
import signal
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alone import Alone
from safetensors.torch import load_file

from cft_ray.errors import UserError
from cft_ray.grid.loggers import Logger
from cft_ray.grid.settings import ScratchModel, Template, TrainingSettings
from cft_ray.plan.specs import FinetuneSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages import finetune

STEPS = 300
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


def context(root, name, workers, loggers=(), **changes):
    spec = FinetuneSpec(scratch=SHAPE, template=Template(name="plain"), training=TRAINING.model_copy(update=changes))
    stage = Stage(spec=spec, inputs={"data": "0" * 64}, resources=Resources(workers=workers, cpus=1))
    return FolderContext(root / name, stage, {"data": root / "data"}, loggers=loggers)


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


def test_one_worker_killed_and_restarted_gives_what_two_undisturbed_give(root, ray_session, trained):
    world = context(root, "killed", workers=1)
    killer = threading.Thread(target=kill_rank_0, args=(world.root,))
    killer.start()
    finetune.run(world)
    killer.join()
    assert len(list((world.root / "pids").iterdir())) == 2  # a second process went on
    assert losses(world) == pytest.approx(losses(trained[0]), abs=1e-4)
    ours, theirs = (load_file(one.output / "model" / "model.safetensors") for one in (world, trained[0]))
    for name in theirs:
        assert (ours[name] - theirs[name]).norm() <= 1e-3 * theirs[name].norm()


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
