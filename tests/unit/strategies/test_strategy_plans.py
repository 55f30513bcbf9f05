"""What strategies ask of a plan, and what they refuse while planning."""

import json

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.settings import ReplaySampling, ScratchModel, Template, TrainingSettings
from cft_ray.plan.specs import Checkpoint, DatasetSpec, DriftSpec, FinetuneSpec, ReplaySpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.strategies import ModelSource, Phase2, build, named

TEMPLATE = Template(name="plain")
BASE = Stage(FinetuneSpec(scratch=ScratchModel(layers=4), template=TEMPLATE, training=TrainingSettings()))
PHASE1 = Stage(FinetuneSpec(template=TEMPLATE, training=TrainingSettings(), seed=1), {"model": BASE.fingerprint})
DATA = Stage(DatasetSpec(toy="multialpaca", columns={}, languages=("de",)))
ENGLISH = Stage(DatasetSpec(toy="alpaca", columns={}, languages=("en",)))


def phase2(**changes) -> Phase2:
    return Phase2(
        **{
            "base": ModelSource(stage=BASE),
            "phase1": ModelSource(stage=PHASE1),
            "data": DATA,
            "english": ENGLISH,
            "template": TEMPLATE,
            "sampling": ReplaySampling(),
            "training": TrainingSettings(),
            "seed": 7,
            "label": "cell",
            "resources": {"drift": Resources(cpus=2.0)},
        }
        | changes
    )


def stages(name: str, settings: dict | None = None, **changes) -> dict[str, Stage]:
    use, defaults = named(name)
    return build(use, {**defaults, **(settings or {})}).stages(phase2(**changes))


def test_ratios_up_to_a_tenth_share_one_generation():
    five, ten, fifty = (stages(name)["replay"] for name in ("GR_5", "GR_10", "GR_50"))
    assert five.fingerprint == ten.fingerprint != fifty.fingerprint
    assert isinstance(fifty.spec, ReplaySpec)
    assert (fifty.spec.ratio, fifty.spec.seed) == (0.5, 7)
    assert dict(ten.inputs) == {"model": PHASE1.fingerprint, "prompts": ENGLISH.fingerprint, "target": DATA.fingerprint}


def test_a_named_phase_1_checkpoint_generates_the_replay():
    checkpoint = Checkpoint(hub="org/instruct", revision="abc")
    stage = stages("GR_10", phase1=ModelSource(checkpoint=checkpoint))["replay"]
    assert isinstance(stage.spec, ReplaySpec)
    assert stage.spec.checkpoints == {"model": checkpoint}
    assert "model" not in stage.inputs


def test_english_replay_reads_the_counterpart():
    assert stages("ER_10") == {"english": ENGLISH}


@pytest.mark.parametrize("name", ["GR_5", "ER_10"])
def test_replay_without_an_english_counterpart_is_refused(name):
    with pytest.raises(UserError, match="English counterpart"):
        stages(name, english=None)


def test_drift_compares_phase_1_with_the_base():
    stage = stages("LF_H2", {"layers": 2})["drift"]
    assert dict(stage.inputs) == {"left": PHASE1.fingerprint, "right": BASE.fingerprint}
    assert stage.resources == Resources(cpus=2.0)
    other = stages("LF_H2", {"layers": 3, "norm": "relative"}, seed=8)["drift"]
    assert other.fingerprint == stage.fingerprint


def test_drift_of_a_named_pair():
    base, instruct = Checkpoint(hub="org/base", revision="a"), Checkpoint(hub="org/instruct", revision="b")
    stage = stages("LF_H2", base=ModelSource(checkpoint=base), phase1=ModelSource(checkpoint=instruct))["drift"]
    assert isinstance(stage.spec, DriftSpec)
    assert stage.spec.checkpoints == {"left": instruct, "right": base}
    assert not stage.inputs


@pytest.mark.parametrize("name", ["none", "LF_H1", "LoRA"])
def test_the_others_need_no_stage(name):
    assert stages(name, {"layers": 2} if name == "LF_H1" else {}) == {}


@pytest.mark.parametrize("name", ["LF_H1", "LF_H2"])
def test_more_layers_than_the_model_has_are_refused_while_planning(name, tmp_path):
    stages(name, {"layers": 4})
    with pytest.raises(UserError, match="10 layers"):
        stages(name)
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 12}))
    local = ModelSource(checkpoint=Checkpoint(path=str(tmp_path), digest="d"))
    stages(name, {"layers": 12}, base=local, phase1=local)
    with pytest.raises(UserError, match="has 12"):
        stages(name, {"layers": 13}, base=local, phase1=local)


def test_weight_decay_is_refused_where_rows_are_frozen():
    decayed = TrainingSettings(weight_decay=0.1)
    with pytest.raises(UserError, match="weight decay"):
        stages("LF_H2", {"layers": 2}, training=decayed)
    assert stages("LF_H2", {"layers": 2, "granularity": "projection"}, training=decayed)
    assert stages("LF_H1", {"layers": 2}, training=decayed) == {}


def test_constraints_are_declared():
    breaks = {name for name in ("none", "LF_H1", "LF_H2", "GR_10", "ER_10", "LoRA") if build(*named(name)).uses_phase1_data}
    assert breaks == {"ER_10"}
    assert not any(build(*named(name)).holds_phase1_weights for name in ("none", "LF_H1", "LF_H2", "GR_10", "ER_10", "LoRA"))
