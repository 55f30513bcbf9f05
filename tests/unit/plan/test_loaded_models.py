"""Which stages can go on with the model that another has loaded, and what a stage says of itself."""

from typing import Any

import pytest

from cft_ray.grid.settings import EngineSettings, GenerationSettings, JudgeSettings, ReplaySampling, Template
from cft_ray.plan.specs import Checkpoint, DriftSpec, EvaluateSpec, ReplaySpec
from cft_ray.plan.stage import Resources, Stage


def replay(**changes: Any) -> ReplaySpec:
    return ReplaySpec(**{"ratio": 0.1, "template": Template(name="toy"), "sampling": ReplaySampling()} | changes)


def evaluation(**changes: Any) -> EvaluateSpec:
    given = {"benchmark": "b", "ability": "TA", "tasks": {}, "metric": "m", "generation": GenerationSettings(max_length=2048)}
    return EvaluateSpec.model_validate(given | changes)


def test_an_engine_is_shared_by_what_it_is_and_not_by_what_it_is_asked():
    loaded = replay().loads
    assert loaded is not None
    others = (replay(ratio=0.5, seed=3), replay(sampling=ReplaySampling(temperature=0.5, max_length=4096)), evaluation())
    assert {spec.loads for spec in others} == {loaded}
    different = (
        replay(sampling=ReplaySampling(max_length=4097)),
        replay(sampling=ReplaySampling(dtype="float32")),
        replay(engine=EngineSettings(sequences=3)),
        replay(checkpoints={"model": Checkpoint(hub="a/b")}),
        replay(checkpoints={"model": Checkpoint(hub="a/b", path="/x")}),
        evaluation(generation=GenerationSettings(max_length=4097, dtype="float16")),
        evaluation(engine=EngineSettings(batch_tokens=5)),
    )
    assert len({loaded, *(spec.loads for spec in different)}) == len(different) + 1
    assert evaluation(checkpoints={"judge": Checkpoint(hub="a/j")}, judge=JudgeSettings(model="m")).loads == loaded


def test_what_is_not_kept():
    assert evaluation(backend="hf").loads is None and DriftSpec().loads is None
    assert evaluation(judge=JudgeSettings()).loads is None, "a local judge takes its place"
    assert evaluation(judge=JudgeSettings(model="m")).loads is not None, "one behind an endpoint does not"


def test_a_stage_names_its_input_and_what_it_loads():
    spec = replay()
    stage = Stage(spec, {"model": "m", "prompts": "p"})
    assert stage.loads == ("m", spec.loads) and Stage(spec, {"prompts": "p"}).loads == (None, spec.loads)
    assert Stage(spec, {"model": "m"}, resources=Resources(workers=2)).loads is None
    assert Stage(DriftSpec(), {"model": "m"}).loads is None


def test_a_changed_copy_has_an_identity_of_its_own():
    spec = replay()
    before = spec.canonical
    changed = spec.model_copy(update={"seed": 5})
    assert changed.canonical != before and spec.canonical == before and spec.model_copy().canonical == before


@pytest.mark.parametrize("skip", [None, "no judge"])
def test_a_stage_comes_back_from_another_process(skip):
    stage = Stage(replay(), {"model": "m"}, "name", Resources(2, 3.0, 1.0, 4.0, 5.0), 6.0, skip)
    again = Stage.from_json(stage.to_json())
    assert again == stage and (again.skip, again.cost, again.resources.hours) == (skip, 6.0, 4.0)
    older = {key: value for key, value in stage.to_json().items() if key != "skip"}
    assert Stage.from_json(older).skip is None
