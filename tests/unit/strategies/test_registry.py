"""From names and settings to strategies and back."""

import subprocess
import sys

import pytest

from cft_ray.errors import UserError
from cft_ray.plan.specs import StrategyRef
from cft_ray.strategies import STUDY_NAMES, Strategy, build, load, named, reference, resolve
from cft_ray.strategies.freezing import MostChangedHeads
from cft_ray.strategies.replay import EnglishReplay, GenerativeReplay


class Halved(Strategy):
    """What a user may write in a module of their own."""

    version = 3
    share: float = 0.5


@pytest.mark.parametrize("name", STUDY_NAMES)
def test_every_study_name_survives_the_way_through_a_spec(name):
    strategy = build(*named(name))
    again = load(StrategyRef.model_validate_json(reference(strategy).model_dump_json()))
    assert type(again) is type(strategy)
    assert again == strategy


@pytest.mark.parametrize(
    ("name", "kind", "ratio"),
    [
        ("GR_5", GenerativeReplay, 0.05),
        ("GR_10", GenerativeReplay, 0.1),
        ("ER_10", EnglishReplay, 0.1),
        ("GR_7", GenerativeReplay, 0.07),
    ],
)
def test_replay_names_hold_the_ratio(name, kind, ratio):
    strategy = build(*named(name))
    assert isinstance(strategy, kind)
    assert strategy.model_dump()["ratio"] == ratio


def test_reference_writes_out_defaults():
    assert reference(build("LF_H2", {})) == reference(build("LF_H2", {"layers": 10, "norm": "absolute", "granularity": "head"}))
    assert reference(build("LF_H2", {"norm": "relative"})) != reference(build("LF_H2", {}))


def test_import_path_leads_to_a_users_class():
    path = f"{Halved.__module__}:Halved"
    strategy = build(path, {"share": 0.25})
    ref = reference(strategy)
    assert (ref.use, ref.version, ref.settings) == (path, 3, {"share": 0.25})
    assert load(ref) == strategy
    assert named(path) == (path, {})


def test_registered_class_by_import_path_is_the_registered_one():
    assert reference(build("cft_ray.strategies.freezing:MostChangedHeads", {})) == reference(MostChangedHeads())


def test_another_version_is_refused():
    with pytest.raises(UserError, match="version 2"):
        load(StrategyRef(use=f"{Halved.__module__}:Halved", version=2, settings={}))


def test_a_class_that_no_other_process_can_import_is_refused():
    class Local(Strategy):
        pass

    with pytest.raises(UserError, match="inside a function"):
        reference(Local())


@pytest.mark.parametrize(
    ("use", "fix"),
    [
        ("LF_H3", "LF_H2"),
        ("lora", "LoRA"),
        ("GR5", "GR_5"),
        ("no_such_package_of_ours.module:Class", "importable"),
        ("cft_ray.strategies.lora:LowRanks", "LowRank"),
        ("cft_ray.errors:UserError", "subclass"),
        ("cft_ray.strategies:build", "subclass"),
    ],
)
def test_unknown_strategies_say_what_would_be_right(use, fix):
    with pytest.raises(UserError) as caught:
        resolve(use, where="grid.yaml: strategies[0]")
    assert caught.value.where == "grid.yaml: strategies[0]"
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("use", "settings", "what"),
    [
        ("GR", {}, "ratio"),
        ("GR", {"ratio": 0}, "ratio"),
        ("ER", {"ratio": 1.5}, "ratio"),
        ("LF_H1", {"layers": 0}, "layers"),
        ("LF_H1", {"layer": 3}, "layer"),
        ("LF_H2", {"granularity": "tensor"}, "granularity"),
        ("LoRA", {"rank": -1}, "rank"),
        ("LoRA", {"target_modules": []}, "target_modules"),
        ("none", {"layers": 3}, "layers"),
    ],
)
def test_wrong_settings_are_named(use, settings, what):
    with pytest.raises(UserError, match=what):
        build(use, settings)


def test_planning_loads_no_heavy_package():
    code = (
        "import sys, cft_ray.strategies as s\n"
        "for name in s.STUDY_NAMES: s.reference(s.build(*s.named(name)))\n"
        "print([m for m in ('torch', 'ray', 'numpy', 'polars', 'pyarrow', 'transformers', 'peft') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
