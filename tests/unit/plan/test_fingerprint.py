"""Fingerprints: stable over processes, key order and machines; changed by every setting that matters, by nothing else."""

import hashlib
import subprocess
import sys
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from cft_ray.errors import UserError
from cft_ray.grid.settings import (
    ActivationSettings,
    DivergenceSettings,
    EmbeddingSettings,
    GenerationSettings,
    JudgeSettings,
    ReplaySampling,
    ScratchModel,
    Template,
    TrainingSettings,
)
from cft_ray.plan.fingerprint import canonical, fingerprint
from cft_ray.plan.specs import (
    SPECS,
    ActivationsSpec,
    Checkpoint,
    CovarianceSpec,
    DatasetSpec,
    DivergenceSpec,
    DriftSpec,
    EmbedSpec,
    EvaluateSpec,
    FinetuneSpec,
    ItemsSource,
    ReplayQualitySpec,
    ReplaySpec,
    SimilaritySpec,
    Spec,
    StrategyRef,
)
from cft_ray.plan.stage import Resources, Stage

SPECIMENS: dict[str, Spec] = {
    "dataset": DatasetSpec(
        hub="a/b",
        revision="r",
        config="c",
        hub_files="f",
        toy=None,
        digest="d",
        columns={"instruction": "q"},
        languages=("en", "de"),
        rows=5,
    ),
    "finetune": FinetuneSpec(
        checkpoints={"model": Checkpoint(hub="a/b", revision="r", digest="d")},
        scratch=ScratchModel(),
        template=Template(name="alpaca"),
        training=TrainingSettings(),
        strategy=StrategyRef(use="LoRA", version=1, settings={"rank": 2}),
    ),
    "replay": ReplaySpec(ratio=0.1, template=Template(name="toy"), sampling=ReplaySampling()),
    "drift": DriftSpec(checkpoints={"left": Checkpoint(hub="a/b")}),
    "evaluate": EvaluateSpec(
        benchmark="b",
        ability="TA",
        tasks={"en": "t"},
        metric="m",
        template=Template(name="toy"),
        generation=GenerationSettings(),
        limit=3,
        items=ItemsSource(digest="d", revision="r"),
        judge=JudgeSettings(model="j"),
    ),
    "embed": EmbedSpec(settings=EmbeddingSettings()),
    "similarity": SimilaritySpec(),
    "activations": ActivationsSpec(template=Template(name="toy"), settings=ActivationSettings()),
    "covariance": CovarianceSpec(),
    "divergence": DivergenceSpec(template=Template(name="toy"), settings=DivergenceSettings()),
    "replay_quality": ReplayQualitySpec(template=Template(name="toy")),
}


def test_literal_digest():
    """The text that is hashed, written by hand: another machine, Python or library must find the same."""
    text = (
        '{"inputs":{"data":"00","model":"ff"},"kind":"drift","settings":{"a":{"x":[1,2.5,null],"ü":true},"b":1e-05},"version":2}'
    )
    found = fingerprint("drift", 2, {"b": 1e-5, "a": {"ü": True, "x": (1, 2.5, None)}}, {"model": "ff", "data": "00"})
    assert found == hashlib.sha256(text.encode()).hexdigest()
    assert found == "40fd70bf6099b6d5b92e3cc58137848245c2f96af33690af517a06f3aa3d21ed"


def test_same_in_another_process_whatever_its_hash_seed():
    code = (
        "from cft_ray.plan.specs import *; from cft_ray.plan.stage import Stage; "
        "print(Stage(DatasetSpec(toy='x', columns={'b': '1', 'a': '2'}, languages=('en',)), {'q': '1', 'p': '2'}).fingerprint)"
    )
    here = Stage(DatasetSpec(toy="x", columns={"a": "2", "b": "1"}, languages=("en",)), {"p": "2", "q": "1"}).fingerprint
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert run.stdout.strip() == here


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1, 2}, object(), len, b"x", {1: 2}], ids=lambda value: type(value).__name__
)
def test_unhashable_setting_is_refused(value):
    with pytest.raises(UserError) as raised:
        canonical({"deep": [{"setting": value}]})
    assert raised.value.where is not None and raised.value.where.startswith("settings.deep[0].setting")


def test_specimens_are_of_every_kind():
    assert set(SPECIMENS) == {kind for kind, spec in SPECS.items() if spec.__module__.startswith("cft_ray.")}


def _other(annotation: Any, value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value != 1.0 or isinstance(value, int) else 0.5
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if choice != value)
    if get_origin(annotation) in (Union, UnionType):
        return _other(next(member for member in get_args(annotation) if member is not type(None)), value)
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (*value, "x")
    if isinstance(value, dict):
        return (
            {**value, "x": Checkpoint(hub="x/y")}
            if any(isinstance(v, Checkpoint) for v in value.values())
            else {**value, "x": "y"}
        )
    if value is None:
        return {int: 7, float: 0.5, str: "x"}.get(annotation) or annotation(name="plain")
    raise AssertionError(f"no other value for {annotation} {value!r}")


def _changed(model: BaseModel) -> list[tuple[str, bool, BaseModel]]:
    """(dotted path, is it identity, the model with that one field changed), for every field, nested models included."""
    found: list[tuple[str, bool, BaseModel]] = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        counts = not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("identity") is False)
        if isinstance(value, BaseModel):
            found += [(f"{name}.{path}", deep, model.model_copy(update={name: new})) for path, deep, new in _changed(value)]
            continue
        if name == "checkpoints" and "model" in value:
            found += [
                (f"{name}.{path}", deep, model.model_copy(update={name: {"model": new}}))
                for path, deep, new in _changed(value["model"])
            ]
        found.append((name, counts, model.model_copy(update={name: _other(field.annotation, value)})))
    return found


@pytest.mark.parametrize("kind", SPECIMENS)
def test_every_field_counts_but_locators(kind):
    spec = SPECIMENS[kind]
    before = Stage(spec).fingerprint
    seen = {before}
    for path, counts, changed in _changed(spec):
        assert isinstance(changed, Spec)
        after = Stage(changed).fingerprint
        assert (after != before) == counts, path
        assert not counts or after not in seen, f"{path} gives the fingerprint of another change"
        seen.add(after)


def test_what_is_no_identity():
    """The whole list, so that none is added by accident."""
    free = {path for spec in SPECIMENS.values() for path, counts, _ in _changed(spec) if not counts}
    assert free == {
        "files",
        "allow_left_out",
        "data",
        "checkpoints.path",
        "items.files",
        "nltk_data",
        "engine.sequences",
        "engine.batch_tokens",
        "engine.gpu_memory",
        "judge.base_url",
        "judge.key_env",
        "judge.max_concurrency",
        "judge.timeout",
        "judge.retries",
        "judge.prompt_price",
        "judge.completion_price",
        "training.padding",
        "training.micro_batch_tokens",
        "training.gradient_checkpointing",
        "training.offload",
        "training.checkpoint_every",
        "settings.batch_size",
        "settings.block_rows",
        "settings.batch_tokens",
    }


def test_inputs_kind_and_version_count_resources_label_and_cost_do_not():
    spec = SPECIMENS["drift"]
    stage = Stage(spec, {"left": "1"})
    assert stage.fingerprint == Stage(spec, {"left": "1"}, "other", Resources(8, 2, 1), 99.0).fingerprint
    others = [{"left": "2"}, {"right": "1"}, {"left": "1", "right": "1"}, {}]
    assert len({stage.fingerprint, *(Stage(spec, inputs).fingerprint for inputs in others)}) == 5
    settings = {"a": 1}
    assert len({fingerprint("a", 1, settings, {}), fingerprint("a", 2, settings, {}), fingerprint("b", 1, settings, {})}) == 3


@pytest.mark.parametrize("kind", SPECIMENS)
def test_stage_survives_json(kind):
    stage = Stage(SPECIMENS[kind], {"data": "0"}, "label", Resources(2, 3, 1), 7.0)
    again = Stage.from_json(stage.to_json())
    assert again == stage and again.fingerprint == stage.fingerprint
