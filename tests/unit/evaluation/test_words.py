"""F1 over words of every script, by hand; and that XQuAD and MLQA are the harness' own apart from it."""

from typing import Any

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from cft_ray.evaluation.overlay import STOCK, TASKS
from cft_ray.evaluation.tasks.mlqa.words import score
from cft_ray.evaluation.tasks.xquad.words import best_f1_words, f1_words, xquad


@pytest.mark.parametrize(
    ("target", "answer", "expected"),
    [
        ("天气很好", "天气很好。", 1.0),
        ("天气很好", "今天天气很好", 4 / 5),  # 天气 很好 of 今天 天气 很好
        ("北京", "上海", 0.0),
        ("القاهرة", "القاهرة؟", 1.0),
        ("مدينة القاهرة", "القاهرة", 2 / 3),
        ("नई दिल्ली", "नई दिल्ली।", 1.0),
        ("नई दिल्ली", "दिल्ली॥", 2 / 3),
        ("กรุงเทพมหานคร", "ที่กรุงเทพมหานคร", 2 / 3),
        ("แมวกินปลา", "แมวกินข้าว", 2 / 3),  # two words of three and three
        ("Αθήνα;", "ΑΘΉΝΑ", 1.0),
        ("«Москва»", "Москва.", 1.0),
        ("l'homme", "homme", 2 / 3),
        ("the cat", "cat", 2 / 3),  # an article is a word
        ("a a b", "a b b", 2 / 3),  # bags: one a, one b of three and three
        ("x", "", 0.0),
        ("", "", 1.0),
        ("+", "-", 0.0),
        ("+", " ＋ ", 1.0),
    ],
)
def test_by_hand(target, answer, expected):
    assert f1_words(target, answer) == pytest.approx(expected)
    assert f1_words(answer, target) == pytest.approx(expected)


def test_stock_scores_stand_beside_it():
    doc: dict[str, Any] = {"answers": {"text": ["天气很好", "not looked at"]}}
    assert xquad(doc, ["天气很好。"]) == {"f1": 0.0, "exact_match": 0, "f1_words": 1.0}
    found = score({"answers": ["no", "天气很好"]}, ["今天天气很好"], "zh")
    assert found == {"f1": pytest.approx(0.8), "exact_match": False, "f1_words": pytest.approx(0.8)}
    assert best_f1_words(["x", "y"], "y z") == pytest.approx(2 / 3)


@pytest.mark.parametrize("benchmark", ["xquad", "mlqa"])
def test_tasks_are_the_harness_own_with_one_metric_more(benchmark):
    """Prompts, splits, stops and targets: what a new version of the harness changes must show here."""
    ours = sorted((TASKS / benchmark).glob("*.yaml"))
    assert len(ours) == {"xquad": 12, "mlqa": 7}[benchmark]
    for path in ours:
        left, right = load_yaml(path, resolve_func=False), load_yaml(STOCK / benchmark / path.name, resolve_func=False)
        more = left["metric_list"].pop()
        assert more == {"metric": "f1_words", "aggregation": "mean", "higher_is_better": True}
        for given in (left, right):
            given.pop("process_results")
            if benchmark == "mlqa":
                assert given.pop("process_docs").endswith("utils.process_docs")
        assert left == right
