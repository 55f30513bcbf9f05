"""The harness with vLLM and with transformers behind it: known scores of a planted model, agreement on a random one."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from lm_eval.api.instance import Instance

from cft_ray.data.rows import table
from cft_ray.data.templates import prompt
from cft_ray.errors import UserError
from cft_ray.evaluation import models
from cft_ray.evaluation.harness import run_benchmark
from cft_ray.generation import engine
from cft_ray.grid.settings import GenerationSettings, Template
from cft_ray.plan.specs import EvaluateSpec

load_model: Any = models.load_model  # its result has more than the harness' interface
TOY = Template(name="toy")


def spec(**changes) -> EvaluateSpec:
    given = {
        "benchmark": "toy_letters",
        "ability": "TA",
        "tasks": {"en": "toy_letters"},
        "metric": "exact_match",
        "template": TOY,
        "generation": GenerationSettings(max_length=256),
    }
    return EvaluateSpec(**{**given, **changes})


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> Path:
    """Six English items, four of which MARK answers; three German ones, of which one."""
    rows = []
    for language, outputs in {"en": ["MARK", "MARK", "no", "MARK", "", "MARK"], "de": ["nein", "MARK", "MARKE"]}.items():
        for number, output in enumerate(outputs):
            row = {"id": f"{language}-{number}", "language": language, "instruction": "Do it", "input": f"x{number}"}
            rows.append({**row, "output": output})
    path = tmp_path_factory.mktemp("items") / "rows.parquet"
    pq.write_table(table(rows), path)
    return path


@pytest.mark.parametrize("backend", ["vllm", "hf"])
def test_planted_answers_are_scored(planted, items, backend):
    result = run_benchmark(load_model(planted, spec(backend=backend)), spec(backend=backend), items)
    assert result.shown == {"en": pytest.approx(4 / 6)}
    score = next(row for row in result.scores if row["metric"] == "exact_match")
    assert score["n"] == 6 and score["shown"] and score["task"] == "toy_letters"
    assert score["stderr"] == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 5))
    assert [row["item"] for row in result.samples] == [f"en-{number}" for number in range(6)]
    assert {row["response"] for row in result.samples} == {"MARK"}
    assert [row["target"] for row in result.samples] == ["MARK", "MARK", "no", "MARK", "", "MARK"]
    right = [{entry["metric"]: entry["value"] for entry in row["metrics"]}["exact_match"] for row in result.samples]
    assert right == [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]


def test_languages_and_limit(planted, items):
    german = spec(tasks={"de": "toy_languages_de"}, benchmark="toy_languages", ability="LA")
    assert run_benchmark(load_model(planted, german), german, items).shown == {"de": pytest.approx(1 / 3)}
    limited = german.model_copy(update={"limit": 2})
    result = run_benchmark(load_model(planted, limited), limited, items)
    assert result.shown == {"de": pytest.approx(1 / 2)} and len(result.samples) == 2


def test_grid_generation_settings_reach_the_task(planted, items):
    short = spec(generation=GenerationSettings(max_length=256, max_new_tokens=2))
    assert {row["response"] for row in run_benchmark(load_model(planted, short), short, items).samples} == {"MA"}
    stopped = spec(generation=GenerationSettings(max_length=256, stop=("R",)))
    assert {row["response"] for row in run_benchmark(load_model(planted, stopped), stopped, items).samples} == {"MA"}


@pytest.mark.parametrize("name", ["toy", "alpaca", "plain", "chat"])
def test_prompt_is_the_one_of_training(planted, items, name):
    """The context that the harness builds is, token for token, what training puts before the answer."""
    model = load_model(planted, spec())
    model.template, model.canonical = Template(name=name, system="Be brief."), True
    row = {"instruction": "Do it", "input": "x\n\ny", "system": "Now."}
    history = [{"role": "system", "content": "Now."}, {"role": "user", "content": "Do it\n\nx\n\ny"}]
    expected = prompt(model.template, row, model.tokenizer)
    assert model.apply_chat_template(history) == expected
    assert model.apply_chat_template([*history, {"role": "assistant", "content": "M"}], False) == expected + "M"
    ids = model.tok_encode(expected)
    assert ids[0] == model.tokenizer.bos_token_id and ids.count(model.tokenizer.bos_token_id) == 1
    assert model.tok_encode(model.tokenizer.bos_token + expected) == ids


def instances(kind: Any, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def test_vllm_and_transformers_agree(random_model):
    texts = [f"text number {number} " * (1 + number % 5) for number in range(16)]
    scored = instances("loglikelihood", [(text, f"ending {number}") for number, text in enumerate(texts)] + [("", "alone")])
    asked = instances("generate_until", [(text, {"until": ["\n"], "max_gen_toks": 12}) for text in texts])
    whole = instances("loglikelihood_rolling", [("a text longer than the model's length " * 10,)])
    by_vllm = load_model(random_model, spec())
    left = by_vllm.loglikelihood(scored), by_vllm.generate_until(asked), by_vllm.loglikelihood_rolling(whole)
    by_hf = load_model(random_model, spec(backend="hf"))
    right = by_hf.loglikelihood(scored), by_hf.generate_until(asked), by_hf.loglikelihood_rolling(whole)
    for (value, greedy), (other, also) in zip(left[0], right[0], strict=True):
        assert value == pytest.approx(other, abs=1e-4) and greedy == also
    assert sum(a == b for a, b in zip(left[1], right[1], strict=True)) >= 15
    assert left[2][0] == pytest.approx(right[2][0], rel=1e-5)


def test_engine_is_kept_for_the_same_model_and_exchanged_for_another(planted, random_model, items):
    first = load_model(planted, spec()).engine
    assert load_model(planted, spec(seed=3, benchmark="toy_numbers")).engine is first
    other = load_model(random_model, spec())
    assert other.engine is not first
    assert "MARK" not in {row["response"] for row in run_benchmark(other, spec(), items).samples}
    again = run_benchmark(load_model(planted, spec()), spec(), items)
    assert again.shown == {"en": pytest.approx(4 / 6)}


def test_bad_names_and_models_are_the_users(planted, items, tmp_path):
    model = load_model(planted, spec())
    with pytest.raises(UserError, match=r"toy_leters.*\n.*toy_letters"):
        unknown = spec(tasks={"en": "toy_leters"})
        run_benchmark(model, unknown, items)
    with pytest.raises(UserError, match="exact_match"):
        run_benchmark(model, spec(metric="f1"), items)
    with pytest.raises(UserError, match="absent"):
        run_benchmark(model, spec(), tmp_path / "absent.parquet")
    engine.unload()
    with pytest.raises(UserError, match="nowhere"):
        load_model(str(tmp_path / "nowhere"), spec())
    (tmp_path / "config.json").write_text((Path(planted) / "config.json").read_text())
    for backend in ("vllm", "hf"):
        with pytest.raises(UserError, match=str(tmp_path)):
            load_model(str(tmp_path), spec(backend=backend))
