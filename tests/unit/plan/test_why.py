"""Why a stage is new: the field that differs from the nearest artifact."""

from made import Made

from cft_ray.grid.schema import grid_from_text
from cft_ray.plan.build import build
from cft_ray.plan.specs import FinetuneSpec
from cft_ray.plan.why import explain

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
