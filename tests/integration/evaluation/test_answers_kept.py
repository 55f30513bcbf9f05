"""A benchmark whose process is killed goes on where its last part ended, and ends with the same scores."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lm_eval.api.instance import Instance
from tableanswers import TableAnswers

from cft_ray.evaluation import answers
from cft_ray.evaluation.answers import Answers, Kept
from cft_ray.evaluation.harness import ask, load_benchmark
from cft_ray.grid.settings import GenerationSettings
from cft_ray.plan.specs import EvaluateSpec, ItemsSource

LANGUAGES = ["de", "en", "zh"]

SLOWLY = """
import sys, time
from pathlib import Path
from tableanswers import TableAnswers
from cft_ray.evaluation import answers
from cft_ray.evaluation.harness import ask, load_benchmark
from cft_ray.plan.specs import EvaluateSpec

answers.GROWTH = 1

def answer(doc):
    time.sleep(0.05)
    return doc["answers"]["text"][0]

spec = EvaluateSpec.model_validate_json(Path(sys.argv[1]).read_text())
ask(answers.Kept(TableAnswers(answer), answers.Answers(sys.argv[2]), first=4), load_benchmark(spec))
"""


@pytest.fixture
def spec(tmp_path) -> EvaluateSpec:
    """Twenty questions in each of three languages."""
    for language in LANGUAGES:
        rows = [
            {
                "id": f"{number}",
                "context": f"{language} {number}",
                "question": f"{number}?",
                "answers": {"text": [f"{language}{number}"], "answer_start": [0]},
            }
            for number in range(20)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{language}.parquet")
    return EvaluateSpec(
        benchmark="xquad",
        ability="LA",
        tasks={language: f"xquad_{language}" for language in LANGUAGES},
        metric="f1",
        generation=GenerationSettings(),
        items=ItemsSource(files={"scored": str(tmp_path / "{language}.parquet")}),
    )


def test_killed_and_taken_up(spec, tmp_path):
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    store = tmp_path / "checkpoints"
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(tmp_path / "spec.json"), str(store)])
    try:
        until = time.monotonic() + 240
        while len(list(store.glob("answers/*/*.json"))) < 3 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    parts = list(store.glob("answers/*/*.json"))
    kept = sum(len(json.loads(part.read_bytes())) for part in parts)
    assert len(parts) >= 3 and 12 <= kept < 60
    told: list[tuple[int, int]] = []
    model = TableAnswers(lambda doc: doc["answers"]["text"][0])
    benchmark = load_benchmark(spec)
    result = ask(Kept(model, Answers(str(store)), first=7, progress=lambda *numbers: told.append(numbers)), benchmark)
    assert model.asked == 60 - kept and told[0] == (kept, 60) and told[-1] == (60, 60)
    assert result.shown == dict.fromkeys(LANGUAGES, 1.0) and len(result.samples) == 60
    again = TableAnswers()
    assert ask(Kept(again, Answers(str(store))), load_benchmark(spec)).samples == result.samples and again.asked == 0


def test_other_questions_are_asked_anew(spec, tmp_path):
    """What is kept answers these very requests: a shorter answer, another item or another order is another name."""
    store = str(tmp_path / "checkpoints")
    ask(Kept(TableAnswers(), Answers(store)), load_benchmark(spec))
    for change in (
        {"generation": GenerationSettings(max_new_tokens=3)},
        {"limit": 19},
        {"tasks": dict(reversed(spec.tasks.items()))},
    ):
        model = TableAnswers()
        ask(Kept(model, Answers(store)), load_benchmark(spec.model_copy(update=change)))
        assert model.asked > 0


def test_answers_come_back_as_they_were(tmp_path):
    store = Answers(str(tmp_path))
    part = {0: (-1.2345678901234567, True), 3: "two\nlines “…” 中\U0001f600", 7: -0.1}
    store.write("x", part)
    store.write("x", {9: ""})
    assert store.read("x") == part | {9: ""} and store.read("y") == {}


def test_parts_grow_with_the_model(monkeypatch, tmp_path):
    """Eight times as large at most, and no larger than what the time of a part allows."""

    sizes: list[int] = []

    class Counting(TableAnswers):
        def generate_until(self, requests, disable_tqdm=False):
            sizes.append(len(requests))
            return [""] * len(requests)

    requests = [Instance("generate_until", {}, (str(number), {}), number) for number in range(40)]
    monkeypatch.setattr(answers, "SECONDS", 1e9)
    Kept(Counting(), Answers(str(tmp_path)), first=2).generate_until(requests)
    assert sizes == [2, 16, 22]
