"""GPUs are seen by what is given them, and by nothing else. The machine's GPU is one that Ray only counts."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from alone import Alone

from cft_ray.data.rows import FILE, table, write_rows
from cft_ray.embedding import work as embedding
from cft_ray.grid.settings import EmbeddingSettings
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages import ray_train, remote


def seen(context: object) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@dataclass
class Located:
    """Called in an actor of the embedding pool: leaves word of what it sees."""

    data: Path
    word: Path

    def __call__(self) -> tuple[Path, str | None]:
        self.word.write_text(str(seen(None)))
        return self.data, None


@pytest.mark.parametrize("engine", [False, True])
@pytest.mark.parametrize(("gpus", "devices"), [(0, ""), (1, "0")])
def test_a_stages_work_sees_what_it_is_given(tmp_path, ray_session, gpus, devices, engine):
    from loadingstage import LoadingSpec

    stage = Stage(LoadingSpec(name="x"), resources=Resources(cpus=1, gpus=gpus))
    assert remote.call(seen, Alone(tmp_path, stage), engine=engine) == devices


@pytest.mark.parametrize(("gpus", "devices"), [(0, ""), (1, "0")])
def test_an_embedding_actor_sees_what_it_is_given(tmp_path, ray_session, gpus, devices):
    write_rows(tmp_path / FILE, [table([{"id": "1", "language": "en", "instruction": "count the red apples"}])])
    located = Located(tmp_path, tmp_path / "word")
    list(embedding.embedded(EmbeddingSettings(), Resources(cpus=1, gpus=gpus), located, [0]))
    assert located.word.read_text() == devices


@pytest.mark.parametrize(("gpus", "devices"), [(0, ""), (1, "0")])
def test_a_training_worker_sees_what_it_is_given(tmp_path, ray_session, gpus, devices):
    needs = Resources(workers=1, cpus=1, gpus=gpus)
    assert ray_train.run(seen, {}, needs, name=f"devices-{gpus}", storage=str(tmp_path)) == devices
