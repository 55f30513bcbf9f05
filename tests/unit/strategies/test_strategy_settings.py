"""What a strategy's settings are where a grid does not give them, and the least and most that they may be; what goes with
a strategy's stages; what a misspelt one is told."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cft_ray.errors import UserError
from cft_ray.grid.problems import adapter
from cft_ray.grid.settings import EngineSettings, ReplaySampling, Template, TrainingSettings
from cft_ray.plan.specs import Checkpoint, DatasetSpec, FinetuneSpec, ReplaySpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.strategies import REGISTRY, STUDY_NAMES, ModelSource, Phase2, build, named, reference, resolve

TEMPLATE = Template(name="plain")
# registered key, setting, default (the study's, arXiv 2410.16006 section 4, where it says one), least, most
NUMBERS = [
    ("LF_H1", "layers", 10, ">0", "1000"),
    ("LF_H2", "layers", 10, ">0", "1000"),
    ("GR", "ratio", None, ">0", "1"),
    ("GR", "generate_ratio", 0.1, ">0", "1"),
    ("ER", "ratio", None, ">0", "1"),
    ("LoRA", "rank", 64, ">0", "65536"),
    ("LoRA", "alpha", 128.0, ">0", "1e6"),
    ("LoRA", "dropout", 0.0, "0", "<1"),
]


@pytest.mark.parametrize(("key", "name", "default", "least", "most"), NUMBERS)
def test_a_number_has_its_default_and_limits(key, name, default, least, most):
    strategy = resolve(key)
    field = strategy.model_fields[name]
    assert field.is_required() if default is None else field.default == default
    whole = field.annotation is int

    def taken(value: float) -> bool:
        try:
            adapter(strategy, name).validate_python(value)
        except ValidationError:
            return False
        return True

    for text, inwards in ((least, 1), (most, -1)):
        limit = float(text.lstrip("<>"))
        beside = [limit + step if whole else math.nextafter(limit, step * math.inf) for step in (inwards, -inwards)]
        assert taken(limit) == (text[0] not in "<>") and taken(beside[0]) and not taken(beside[1]), limit


def test_what_else_is_left_open():
    assert build("LF_H2", {}).model_dump() == {"layers": 10, "granularity": "head", "norm": "absolute"}
    lora = build("LoRA", {}).model_dump()
    assert lora["target_modules"] == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {
        key: reference(build(key, {"ratio": 0.1} if key in ("GR", "ER") else {})).version for key in REGISTRY
    } == dict.fromkeys(REGISTRY, 1)


def test_names_of_the_study():
    assert STUDY_NAMES == ("none", "LF_H1", "LF_H2", "GR_5", "GR_10", "ER_10", "LoRA")
    assert [named(name) for name in ("GR_5", "GR_100", "ER_1", "none")] == [
        ("GR", {"ratio": 0.05}), ("GR", {"ratio": 1.0}), ("ER", {"ratio": 0.01}), ("none", {}),
    ]  # fmt: skip
    for name in ("GR_1000", "GR_", "LF_H1_5", "xGR_5", "GR_5x"):
        with pytest.raises(UserError):
            named(name)


@pytest.mark.parametrize(
    ("use", "fix"),
    [
        ("GR_", "did you mean GR_5 or GR or GR_10?"),
        ("lf_h3", "did you mean LF_H2 or LF_H1?"),
        ("something else", "known: none, LF_H1, LF_H2, GR_5, GR_10, ER_10, LoRA, GR, ER."),
    ],
)
def test_what_may_have_been_meant(use, fix):
    with pytest.raises(UserError) as raised:
        resolve(use)
    assert str(raised.value.fix).startswith(fix)


@pytest.mark.parametrize("use", ["a..b:C", ":C", "a.b:", "a b:C", "a.b:C()"])
def test_no_import_path(use):
    with pytest.raises(UserError, match="is no import path"):
        resolve(use)


def test_a_module_that_cannot_be_imported_is_named_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text, reason in (
        ("raises_at_import", "raise ZeroDivisionError('planted')", "ZeroDivisionError: planted"),
        ("exits_at_import", "raise SystemExit(3)", "SystemExit: 3"),
        ("needs_another", "import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(UserError) as raised:
            resolve(f"{name}:C")
        assert raised.value.what.endswith(f"cannot be imported: {reason}") and f"{name!r}" in str(raised.value.fix)


def test_wrong_settings_are_all_named():
    with pytest.raises(UserError) as raised:
        build("LF_H2", {"layer": 3, "norm": "x"}, where="here")
    error = raised.value
    assert "unknown setting 'layer'" in error.what and "norm = 'x'" in error.what and error.where == "here"
    assert "did you mean layers?" in str(error.fix)
    with pytest.raises(UserError, match="setting 'ratio' is missing") as raised:
        build("GR", {})
    assert str(raised.value.fix).startswith("give ratio: rows to add")
    with pytest.raises(UserError, match="unknown setting 'x'") as raised:
        build("none", {"x": 1})
    assert raised.value.fix == "it has no settings"


DATA, ENGLISH = (Stage(DatasetSpec(toy=name, columns={}, languages=("en",))) for name in ("multialpaca", "alpaca"))
TRAINED = Stage(FinetuneSpec(template=TEMPLATE, training=TrainingSettings()))


def phase2(**changes: Any) -> Phase2:
    given = {
        "base": ModelSource(checkpoint=Checkpoint(hub="a/b", revision="r")), "phase1": ModelSource(stage=TRAINED), "data": DATA,
        "english": ENGLISH, "template": TEMPLATE, "sampling": ReplaySampling(top_p=0.5), "training": TrainingSettings(),
        "seed": 3, "label": "cell", "resources": {},
    }  # fmt: skip
    return Phase2(**given | changes)


def test_stages_have_the_resources_the_sampling_and_the_engine_of_the_grid():
    resources = {"replay": Resources(cpus=5.0), "drift": Resources(cpus=7.0)}
    engine = EngineSettings(sequences=9)
    replay = build("GR", {"ratio": 0.3}).stages(phase2(resources=resources, engine=engine))["replay"]
    assert isinstance(replay.spec, ReplaySpec) and replay.resources == Resources(cpus=5.0)
    assert (replay.spec.ratio, replay.spec.sampling.top_p, replay.spec.engine.sequences, replay.spec.seed) == (0.3, 0.5, 9, 3)
    assert replay.label == "cell replay"
    drift = build("LF_H2", {"granularity": "block"}).stages(phase2(resources=resources))["drift"]
    assert drift.resources == Resources(cpus=7.0) and drift.label == "cell drift of phase 1"
    assert build("LF_H2", {}).stages(phase2())["drift"].resources == Resources()
    assert build("GR", {"ratio": 0.05}).stages(phase2())["replay"].resources == Resources()


def test_layers_are_checked_where_they_are_known(tmp_path):
    for text, known in (('{"num_hidden_layers": 3}', True), ("{}", False), ('{"num_hidden_layers": "3"}', False)):
        (tmp_path / "config.json").write_text(text)
        local = ModelSource(checkpoint=Checkpoint(path=str(tmp_path), digest="d"))
        unknown = ModelSource(checkpoint=Checkpoint(hub="a/b", revision="r"))
        for sources in ({"base": local, "phase1": unknown}, {"base": unknown, "phase1": local}):
            assert build("LF_H1", {"layers": 3}).stages(phase2(**sources)) == {}
            if known:
                with pytest.raises(UserError, match="4 layers are to be frozen, but the model has 3"):
                    build("LF_H1", {"layers": 4}).stages(phase2(**sources))
            else:
                assert build("LF_H1", {"layers": 4}).stages(phase2(**sources)) == {}


@pytest.mark.parametrize(
    ("decay", "granularity", "refused"), [(0.0, "head", False), (0.01, "head", True), (0.01, "block", False)]
)
def test_weight_decay_would_move_frozen_rows(decay, granularity, refused):
    cell = phase2(training=TrainingSettings(weight_decay=decay))
    strategy = build("LF_H2", {"granularity": granularity})
    if refused:
        with pytest.raises(UserError, match="weight decay"):
            strategy.stages(cell)
    else:
        assert set(strategy.stages(cell)) == {"drift"}


def test_the_plain_strategy_exports_every_parameter_under_its_name():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1, bias=False))
    found = dict(build("none", {}).exported(model))
    assert set(found) == {"0.weight", "0.bias", "1.weight"} and all(
        torch.equal(found[name], p) for name, p in model.named_parameters()
    )
    assert build("none", {}).prepare(model, {}, 0) is model and build("none", {}).facts(model) == {}
