"""Models kept on a GPU between stages. The GPU is only counted, by Ray: what is shown is who holds it, and for how long."""

import io

import pytest
from loadingstage import LoadingSpec
from rich.console import Console
from toygraph import World, plan

from cft_ray.artifacts.store import ArtifactStore
from cft_ray.execute.run import run
from cft_ray.plan.stage import Plan, Resources, Stage
from cft_ray.storage.root import Storage

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return World(tmp_path)


def loading(name: str, model: str | None, gpus: float = 1.0, dies: str | None = None) -> Stage:
    spec = LoadingSpec(name=name, model=model, dies=dies)
    return Stage(spec, label=name, resources=Resources(cpus=1, gpus=gpus))


def found(world: World, planned: Plan) -> dict[str, dict]:
    """Label -> what its process said of itself."""
    outcome = run(planned, world.storage, console=Console(file=io.StringIO()))
    assert outcome.exit_code == 0, [stage.error for stage in outcome.failed]
    store = ArtifactStore(Storage(world.storage))
    return {stage.label: store.verify(stage.kind, key).outputs for key, stage in planned.stages.items()}


def test_a_model_is_loaded_once_for_all_its_stages_and_the_gpu_is_given_back(world):
    shared = [loading(f"{model}{number}", model) for number in range(3) for model in "ab"]
    between = loading("between", None)
    told = found(world, plan(*shared, between))
    for model in "ab":
        mine = [told[f"{model}{number}"] for number in range(3)]
        assert len({each["pid"] for each in mine}) == 1 and [each["loads"] for each in mine] == [1, 1, 1]
    assert len({each["pid"] for each in told.values()}) == 3  # a process of its own for each model, and for the task
    assert all(each["gpus"] == [0] for each in told.values())


def test_a_host_that_dies_is_there_again_for_the_next_try(world, tmp_path):
    first, second = loading("x", "a"), loading("y", "a", dies=str(tmp_path / "died"))
    told = found(world, plan(first, second))
    assert (tmp_path / "died").exists() and told["y"]["loads"] == 1
    assert world.attempts(second) == ["failed", "done"] and world.attempts(first) == ["done"]


def test_without_a_gpu_there_is_no_host(world):
    told = found(world, plan(loading("x", "a", gpus=0), loading("y", "a", gpus=0)))
    assert [each["gpus"] for each in told.values()] == [[], []]
