"""Why a stage is new: the field that differs from the nearest artifact."""

import pytest
from made import Made

from cft_ray.grid.schema import grid_from_text
from cft_ray.plan.build import build
from cft_ray.plan.specs import DriftSpec, FinetuneSpec
from cft_ray.plan.stage import Plan, Stage
from cft_ray.plan.why import Difference, explain

GRID = """\
name: g
storage: runs/g
models: {a: {base: {hub: org/a}}}
datasets:
  en: {hub: org/en, format: alpaca, languages: [en]}
  multi: {hub: org/multi, format: alpaca, languages: [de]}
pairs: [{phase1: en, phase2: multi}]
strategies: [none]
training: {learning_rate: 1e-6}
evaluation: {benchmarks: [ifeval, mmlu], evaluate_base: false}
"""


def planned(*sets):
    return build(grid_from_text(GRID, "g.yaml", sets))


def artifacts(plan, kinds=("dataset", "finetune", "evaluate")):
    return [
        Made(
            kind=stage.kind,
            version=stage.spec.version,
            fingerprint=fingerprint,
            settings=stage.spec.identity(),
            inputs=dict(stage.inputs),
        )
        for fingerprint, stage in plan.stages.items()
        if stage.kind in kinds
    ]


def told(plan, existing):
    reasons = explain(plan, existing)
    return {plan.stages[fingerprint].label: reason for fingerprint, reason in reasons.items()}


def test_all_cached_and_nothing_there():
    plan = planned()
    assert {reason.status for reason in explain(plan, artifacts(plan)).values()} == {"cached"}
    assert {(reason.status, reason.nearest) for reason in explain(plan, []).values()} == {("new", None)}


def test_changed_setting_is_named_and_what_follows_from_it():
    before = planned()
    after = planned("training.phase2={learning_rate: 1e-5}")
    reasons = told(after, artifacts(before))
    assert reasons["a en"].status == "cached" and reasons["multi"].status == "cached"
    phase2 = reasons["a en→multi none"]
    assert [(d.path, d.old, d.new) for d in phase2.differences] == [("training.learning_rate", 1e-6, 1e-5)]
    assert phase2.nearest == before.cells[0].roles["phase2"]
    scored = reasons["a en→multi none ifeval"]
    assert [(d.path, d.new) for d in scored.differences] == [("input model", "new")]


def test_nearest_is_the_one_with_fewest_differences():
    existing = artifacts(planned("training.phase2={learning_rate: 1e-5, batch_size: 32}")) + artifacts(
        planned("training.phase2={learning_rate: 1e-5}")
    )
    phase2 = told(planned("training.phase2={learning_rate: 1e-4}"), existing)["a en→multi none"]
    assert [(d.path, d.old, d.new) for d in phase2.differences] == [("training.learning_rate", 1e-5, 1e-4)]


def test_new_revision_of_a_data_set_makes_all_that_reads_it_new():
    reasons = told(planned("datasets.en.revision=v2"), artifacts(planned()))
    assert [(d.path, d.old, d.new) for d in reasons["en"].differences] == [("revision", None, "v2")]
    assert [d.path for d in reasons["a en"].differences] == ["input data"]
    assert [d.path for d in reasons["a en→multi none"].differences] == ["input model"]
    assert reasons["multi"].status == "cached"


def test_raised_version_and_exchanged_input():
    plan = planned()
    older = artifacts(plan)
    for item in older:
        if item.kind == "finetune":
            item.version, item.fingerprint = item.version - 1, "0" * 64
    assert [(d.path, d.old, d.new) for d in told(plan, older)["a en"].differences] == [
        ("version", FinetuneSpec.version - 1, FinetuneSpec.version)
    ]
    swapped = planned("pairs=[{phase1: multi, phase2: en}]")
    exchanged = told(swapped, artifacts(plan))["a multi"].differences
    assert [d.path for d in exchanged] == ["input data"] and "multi" in str(exchanged[0])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (1, 2.5, "a.b: 1 → 2.5"),
        (None, False, "a.b: none → False"),
        ("x" * 40, "x" * 41, f"a.b: {'x' * 40} → {'x' * 37}…"),
        ([1, 2], {}, "a.b: [1, 2] → {}"),
    ],
)
def test_a_difference_in_words(old, new, said):
    assert str(Difference("a.b", old, new)) == said
    assert str(Difference("input data", old, "new")) == "input data is new"


def test_what_is_there_on_one_side_alone_is_absent_on_the_other():
    plan = planned()
    older = artifacts(plan, ("dataset",))
    for item in older:
        item.fingerprint = item.fingerprint[::-1]
        item.settings = {key: value for key, value in item.settings.items() if key != "rows"} | {"gone": 3}
    found = [str(difference) for difference in told(plan, older)["en"].differences]
    assert found == ["rows: absent → none", "gone: 3 → absent"]


def test_the_nearest_is_the_one_with_the_fewest_differences():
    plan = planned()
    (key, stage) = next((key, stage) for key, stage in plan.stages.items() if stage.label == "a en→multi none")
    settings, inputs, version = stage.spec.identity(), dict(stage.inputs), stage.spec.version

    def made(name, changed=(), inputs=inputs, version=version):
        return Made("finetune", version, name * 64, settings | dict.fromkeys(changed, 9), dict(inputs))

    both = made("1", ["seed", "scratch"])
    cases = [
        (made("2", ["seed"]), ["seed"]),
        (made("2", version=version - 1), ["version"]),
        (made("2", inputs=inputs | {"replay": "0" * 64}), ["input replay"]),
        (made("2", inputs={role: name for role, name in inputs.items() if role != "model"}), ["input model"]),
    ]
    for near, differences in cases:
        for order in ([both, near], [near, both]):
            reason = explain(plan, order)[key]
            assert reason.nearest == "2" * 64 and [d.path for d in reason.differences] == differences
    equal = [made("3", ["seed"]), made("4", ["scratch"])]
    assert explain(plan, equal)[key].nearest == "3" * 64


def test_inputs_that_differ_are_named():
    plan = planned()
    key, stage = next((key, stage) for key, stage in plan.stages.items() if stage.label == "a en→multi none")
    other = Made("finetune", stage.spec.version, "1" * 64, stage.spec.identity(), {"data": "e" * 64, "extra": "2" * 64})
    found = {d.path: (d.old, d.new) for d in explain(plan, [other])[key].differences}
    assert found == {"input data": ("e" * 64, "new"), "input model": (None, "new"), "input extra": ("2" * 64, "no longer read")}
    data = plan.stages[stage.inputs["data"]]
    there = Made("dataset", data.spec.version, stage.inputs["data"], data.spec.identity(), {})
    found = {d.path: d.new for d in explain(plan, [other, there])[key].differences}
    assert found["input data"] == "another: multi"
    alone = Plan("g", {key: stage}, ())
    found = {d.path: d.new for d in explain(alone, [other])[key].differences}
    assert found["input data"] == f"another: {stage.inputs['data'][:12]}"


def test_skipped_stages_are_neither_new_nor_cached():
    stage = Stage(DriftSpec(), skip="no judge")
    plan = Plan("g", {stage.fingerprint: stage}, ())
    (reason,) = explain(plan, []).values()
    assert (reason.status, str(reason)) == ("skipped", "skipped: no judge")
    (reason,) = explain(plan, [Made("drift", 1, stage.fingerprint, {}, {})]).values()
    assert (reason.status, str(reason)) == ("cached", "cached")
    assert str(explain(planned(), [])[next(iter(planned().stages))]) == "nothing like it is there"
