"""XL-Sum through the harness, from Parquet files made on the spot: known scores, and those of the plain command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lm_eval.tasks import TaskManager

from cft_ray.evaluation.harness import run_benchmark
from cft_ray.evaluation.models import load_model
from cft_ray.evaluation.overlay import TASKS
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.settings import GenerationSettings, Template
from cft_ray.plan.specs import EvaluateSpec, ItemsSource

XLSUM = BENCHMARKS["xlsum"]
FOLDERS = {
    "ar": "arabic",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "hi": "hindi",
    "ja": "japanese",
    "zh": "chinese_simplified",
}
SUMMARIES = {
    "ar": ["MARK", "جملة قصيرة"],
    "en": ["MARK of honour", "mark"],
    "es": ["la marca MARK", "otra frase"],
    "fr": ["MARK", "MARK"],
    "hi": ["MARK भारत", "छोटा वाक्य"],
    "ja": ["MARK です", "短い文"],
    "zh": ["MARK中国", "短句"],
}
EXPECTED = {"ar": 0.5, "en": (2 / 4 + 1) / 2, "es": 2 / 4 / 2, "fr": 1.0, "hi": 2 / 3 / 2, "ja": 2 / 3 / 2, "zh": 2 / 3 / 2}
"""rouge1 and rougeL of the answer MARK."""
ASCII = {"ar": 0.5, "en": (2 / 4 + 1) / 2, "es": 2 / 4 / 2, "fr": 1.0, "hi": 0.5, "ja": 0.5, "zh": 0.5}
"""Where the other words do not count, the answer seems perfect."""


def hub(root: Path, repeats: int) -> Path:
    """A working directory in which the hub's id is a folder: so the harness loads the tasks unmodified."""
    for language, folder in FOLDERS.items():
        rows = [
            {"id": f"{language}{number}", "url": "", "title": "", "summary": summary, "text": f"{summary} " * repeats}
            for number, summary in enumerate(SUMMARIES[language])
        ]
        path = root / "csebuetnlp" / "xlsum" / folder / "test" / "0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    return root


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    """Articles far longer than the models' context."""
    return hub(tmp_path_factory.mktemp("hub"), repeats=2000)


@pytest.fixture
def spec(hub_folder, monkeypatch) -> EvaluateSpec:
    monkeypatch.chdir(hub_folder)
    return EvaluateSpec(
        benchmark="xlsum",
        ability=XLSUM.ability,
        tasks=XLSUM.tasks,
        metric=XLSUM.metric,
        generation=GenerationSettings(max_length=256, max_new_tokens=16),
        backend="hf",
    )


def test_every_language_is_scored(planted, spec):
    result = run_benchmark(load_model(planted, spec), spec)
    assert XLSUM.missing is None and set(XLSUM.tasks) == set(FOLDERS)
    assert result.shown == pytest.approx(EXPECTED)
    values = {(row["language"], row["metric"]): row["value"] for row in result.scores}
    for language in FOLDERS:
        assert values[language, "rouge1"] == pytest.approx(EXPECTED[language])
        assert values[language, "rouge1_ascii"] == values[language, "rougeL_ascii"] == pytest.approx(ASCII[language])
        assert values[language, "rouge2"] == values[language, "rouge2_ascii"] == 0.0, "an answer of one word has no pair"
    assert all(0 <= row["value"] <= 1 and row["n"] == 2 for row in result.scores)
    assert {row["item"] for row in result.samples} == {f"{language}{n}" for language in FOLDERS for n in range(2)}


def test_the_end_of_a_long_article_goes_and_the_instruction_stays(hub_folder, monkeypatch):
    monkeypatch.chdir(hub_folder)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    for name in XLSUM.tasks.values():
        task: Any = manager.load(name)["tasks"][name]
        long = {"text": "first" + "x" * 20_000, "summary": ""}
        short = task.doc_to_text({"text": "first", "summary": ""})
        before, after = short.split("first")
        prompt = task.doc_to_text(long)
        assert prompt.startswith(f"{before}firstx") and prompt.endswith(f"x{after}") and len(after) > 20
        assert 2_000 < len(prompt) < 11_000


def test_scores_are_those_of_the_plain_command_line(random_model, spec, monkeypatch, tmp_path):
    """Of articles that fit: of longer ones the command line drops the beginning, we keep it."""
    hub_folder = hub(tmp_path / "short", repeats=1)
    monkeypatch.chdir(hub_folder)
    two = spec.model_copy(update={"tasks": {"ar": "xlsum_ar", "en": "xlsum_en"}, "template": None})
    ours = run_benchmark(load_model(random_model, two), two)
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "2"]
    command += ["--model_args", f"pretrained={random_model},dtype=float32,max_length=256", "--tasks", "xlsum_ar,xlsum_en"]
    command += ["--include_path", str(TASKS), "--gen_kwargs", "max_gen_toks=16", "--output_path", str(tmp_path)]
    subprocess.run([*command, "--log_samples"], cwd=hub_folder, check=True, capture_output=True)
    [path] = tmp_path.rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"]
    compared = 0
    for row in ours.scores:
        assert theirs[row["task"]][f"{row['metric']},none"] == row["value"]
        compared += 1
    assert compared == 12
    answers = {}
    for path in tmp_path.rglob("samples_*.jsonl"):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            answers[sample["doc"]["id"]] = sample["filtered_resps"][0]
    assert answers == {row["item"]: row["response"] for row in ours.samples} and any(answers.values())


def test_template_wraps_the_whole_question(planted, spec):
    wrapped = spec.model_copy(update={"template": Template(name="alpaca")})
    assert run_benchmark(load_model(planted, wrapped), wrapped).shown == pytest.approx(EXPECTED)


def test_files_in_place_of_the_hub(planted, spec, repository):
    files = repository / "grids" / "data" / "xlsum" / "{language}.jsonl"
    given = spec.model_copy(update={"items": ItemsSource(files={"scored": str(files)})})
    result = run_benchmark(load_model(planted, given), given)
    assert result.shown == dict.fromkeys(FOLDERS, 0.0), "MARK is in none of these summaries"
    assert sorted(row["item"] for row in result.samples) == sorted(f"{language}-{n}" for language in FOLDERS for n in range(2))
    assert all(row["target"] and row["response"] == "MARK" for row in result.samples)
