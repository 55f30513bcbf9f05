"""The harness' results as table rows; expectations written by hand."""

import numpy as np
import pytest

from cft_ray.errors import UserError
from cft_ray.evaluation.rows import cluster, evaluation_of
from cft_ray.grid.settings import GenerationSettings
from cft_ray.metrics.schemas import table_of
from cft_ray.plan.specs import EvaluateSpec


def sample(number: int, doc: dict, **more):
    return {"doc_id": number, "doc": doc, "filter": "none", **more}


def spec(**changes) -> EvaluateSpec:
    given = {
        "benchmark": "quiz",
        "ability": "LA",
        "tasks": {"de": "quiz_de", "fr": "quiz_fr"},
        "metric": "f1",
        "generation": GenerationSettings(),
    }
    return EvaluateSpec(**{**given, **changes})


GENERATED = {
    "results": {
        "quiz_de": {"alias": "quiz_de", "sample_len": 2, "f1,none": 0.75, "f1_stderr,none": 0.25, "exact_match,none": 0.5},
        "quiz_fr": {"alias": "quiz_fr", "f1,none": 0.0, "f1_stderr,none": "N/A"},
    },
    "n-samples": {"quiz_de": {"original": 9, "effective": 2}, "quiz_fr": {"original": 1, "effective": 1}},
    "samples": {
        "quiz_de": [
            sample(
                0,
                {"id": "q0", "context": "same"},
                target="ja",
                arguments=[("…", {})],
                filtered_resps=["ja"],
                metrics=["f1", "exact_match"],
                f1=1.0,
                exact_match=np.float64(1),
            ),
            sample(
                1,
                {"id": "q1", "context": "same"},
                target=["a", "b"],
                arguments=[("…", {})],
                filtered_resps=["a c"],
                metrics=["f1", "exact_match"],
                f1=0.5,
                exact_match=False,
            ),
        ],
        "quiz_fr": [
            sample(
                0,
                {},
                target="oui",
                arguments=[("…", {})],
                filtered_resps=[""],
                metrics=["f1", "parts"],
                f1=0,
                parts=[True, False],
            )
        ],
    },
}
ALONE = {"quiz_de": ["quiz_de"], "quiz_fr": ["quiz_fr"]}


def test_generated_answers():
    result = evaluation_of(spec(), GENERATED, ALONE)
    assert result.shown == {"de": 0.75, "fr": 0.0}
    found = {(row["language"], row["metric"]): row for row in result.scores}
    assert set(found) == {("de", "f1"), ("de", "exact_match"), ("fr", "f1")}
    assert (found["de", "f1"]["stderr"], found["de", "f1"]["n"], found["de", "f1"]["shown"]) == (0.25, 2, True)
    assert (found["fr", "f1"]["stderr"], found["de", "exact_match"]["shown"]) == (None, False)
    first, second, third = result.samples
    assert first["item"] == "q0" and first["cluster"] == second["cluster"] is not None and third["cluster"] is None
    assert second["response"] == "a c"
    assert second["metrics"] == [{"metric": "f1", "value": 0.5}, {"metric": "exact_match", "value": 0.0}]
    assert third["metrics"] == [{"metric": "f1", "value": 0.0}, {"metric": "parts", "value": 0.5}]
    assert table_of("scores", result.scores).num_rows == 3
    assert table_of("samples", result.samples).num_rows == 3


def test_choices_of_a_group():
    """A group's score is shown, its tasks' stand beside it; items keep their own task, the chosen text and the right one."""
    arguments = [("q", " A"), ("q", " B")]
    one = sample(
        0,
        {"subject": "law", "question": "?"},
        target=1,
        arguments=arguments,
        filtered_resps=[(-3.0, False), (-1.0, True)],
        metrics=["acc"],
        acc=1.0,
    )
    results = {
        "results": {"all": {"acc,none": 0.5}, "law": {"acc,none": 1.0}, "art": {"acc,none": 0.0}},
        "n-samples": {"law": {"effective": 1}, "art": {"effective": 1}},
        "samples": {"law": [one], "art": [{**one, "doc": {"subject": "art"}, "target": 0, "acc": 0.0}]},
    }
    result = evaluation_of(spec(tasks={"en": "all"}, metric="acc"), results, {"all": ["law", "art"]})
    found = [(row["task"], row["value"], row["n"], row["shown"]) for row in result.scores]
    assert found == [("all", 0.5, 2, True), ("law", 1.0, 1, False), ("art", 0.0, 1, False)]
    assert [(row["task"], row["cluster"], row["target"], row["response"]) for row in result.samples] == [
        ("law", "law", "B", "B"),
        ("art", "art", "A", "B"),
    ]


def test_several_filters_are_one_item():
    strict = sample(
        0, {}, target="4", arguments=[("q", {})], filtered_resps=["4"], metrics=["exact_match"], exact_match=1.0, filter="strict"
    )
    loose = {**strict, "filter": "loose", "filtered_resps": ["x"], "exact_match": 0.0}
    results = {
        "results": {"t": {"exact_match,strict": 1.0, "exact_match,loose": 0.0}},
        "n-samples": {"t": {"effective": 1}},
        "samples": {"t": [strict, loose]},
    }
    result = evaluation_of(spec(tasks={"en": "t"}, metric="exact_match,strict"), results, {"t": ["t"]})
    (row,) = result.samples
    assert row["response"] == "4"
    assert row["metrics"] == [{"metric": "exact_match,strict", "value": 1.0}, {"metric": "exact_match,loose", "value": 0.0}]


def test_metric_that_a_task_lacks():
    with pytest.raises(UserError, match="exact_match, f1"):
        evaluation_of(spec(metric="acc"), GENERATED, ALONE)


def test_cluster():
    assert cluster({"subject": "law", "context": "x"}) == "law"
    assert cluster({"context": "x"}) == cluster({"context": "x", "question": "?"}) != cluster({"context": "y"})
    assert cluster({"question": "?"}) is None
