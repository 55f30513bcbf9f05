"""The harness with vLLM and with transformers behind it: known scores of a planted model, agreement on a random one."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from lm_eval.api.instance import Instance
from tinymodels import copied, ending_a_turn, plant, spoiled

from cft_ray.data.encoding import Encoder
from cft_ray.data.rows import table
from cft_ray.errors import UserError
from cft_ray.evaluation import models
from cft_ray.evaluation.answers import Answers, Kept
from cft_ray.evaluation.harness import run_benchmark
from cft_ray.evaluation.vllm_model import VllmModel
from cft_ray.generation import engine
from cft_ray.generation.budget import CUT, SHORTENED
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
def spelling(tmp_path_factory) -> str:
    """A model that answers with the characters of its end-of-sequence token, and ends."""
    return str(plant(tmp_path_factory.mktemp("spelling"), "A</s>B"))


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
    expected = Encoder(model.tokenizer, model.template).written(row)
    assert model.apply_chat_template(history) == expected
    assert model.apply_chat_template([*history, {"role": "assistant", "content": "M"}], False) == expected + "M"
    ids = model.tok_encode(expected)
    assert ids[0] == model.tokenizer.bos_token_id and ids.count(model.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("backend", ["vllm", "hf"])
def test_an_answer_ends_where_it_is_taught_to(planted, tmp_path, backend):
    """At the chat template's end of a turn, which is not the end of sequence that the model's files name."""
    model = load_model(ending_a_turn(planted, tmp_path / "turns"), spec(backend=backend))
    model.template, model.canonical = Template(name="chat"), False
    prompt = model.apply_chat_template([{"role": "user", "content": "Do it"}])
    assert generated(model, prompt, 12) == "MARK"
    model.template = None
    assert generated(model, prompt, 12) != "MARK"


@pytest.mark.parametrize("backend", ["vllm", "hf"])
def test_text_that_is_spelled_like_the_end_token_ends_no_answer(spelling, backend):
    """An answer ends at ids; a text ends it where the task says so, and an empty one nowhere."""
    model = load_model(spelling, spec(backend=backend))
    model.template = None
    asked = [("Do it", {"until": until, "max_gen_toks": 12}) for until in (["\n"], ["", "\n"], [], ["</s>"], ["zz", ">"])]
    assert model.generate_until(instances("generate_until", asked)) == ["A</s>B", "A</s>B", "A</s>B", "A", "A</s"]


def test_a_models_own_penalties_are_not_applied_by_transformers_as_they_are_not_by_vllm(random_model, tmp_path):
    asked = instances("generate_until", [("Do it", {"until": ["\n"], "max_gen_toks": 24})])
    penalised = Path(copied(random_model, tmp_path / "penalised"))
    (penalised / "generation_config.json").write_text(json.dumps({"repetition_penalty": 50.0, "no_repeat_ngram_size": 1}))
    for backend in ("hf", "vllm"):
        answers = []
        for folder in (random_model, str(penalised)):
            model = load_model(folder, spec(backend=backend))
            model.template = None
            answers += model.generate_until(asked)
        assert answers[0] == answers[1] and len(answers[0]) > len(set(answers[0]))


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


def test_engine_is_kept_for_the_same_model_and_gives_the_answers_of_another(planted, random_model, items):
    first = load_model(planted, spec()).engine
    assert load_model(planted, spec(seed=3, benchmark="toy_numbers")).engine is first
    other = load_model(random_model, spec())
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


@pytest.fixture(params=["vllm", "hf"])
def asked(request, random_model):
    """A model of 256 positions whose answers do not end by themselves."""
    model = load_model(random_model, spec(backend=request.param))
    model.template = None
    model.take_changes()
    return model


def generated(model, text: str, most: int) -> str:
    (answer,) = model.generate_until(instances("generate_until", [(text, {"until": ["\n"], "max_gen_toks": most})]))
    return answer


def test_a_long_answer_leaves_the_question_whole(asked):
    question = "What is the colour of the sky over the sea, they asked? "  # a token a byte, 57 with the beginning
    answer = generated(asked, question, 16)
    assert len(answer) > 8 and asked.take_changes() == {}
    for most in (256 - 57, 255, 256, 4000):
        assert generated(asked, question, most).startswith(answer)
    assert asked.take_changes() == {SHORTENED: 3}


def test_a_prompt_is_cut_only_when_it_fills_the_context_alone(asked):
    text = "".join(chr(97 + number % 26) for number in range(254))
    assert generated(asked, text, 64) == generated(asked, text, 1)  # 255 tokens: whole, one is left for the answer
    assert asked.take_changes() == {SHORTENED: 1}
    kept = text[-(256 - 64 - 1) :]  # a quarter for the answer, one token of beginning, the last ones
    assert generated(asked, "xy" + text, 100) == generated(asked, kept, 64)
    assert asked.take_changes() == {CUT: 1}
    # With a template its opening stays, and its end.
    asked.template = Template(name="alpaca")
    opening = asked.opening()
    words = asked.tok_encode(asked.apply_chat_template([{"role": "user", "content": "a"}]))[:opening]
    assert asked.tokenizer.decode(words).endswith("### Instruction:\n") and words[0] == asked.tokenizer.bos_token_id


def test_a_long_context_of_a_choice_is_cut_and_counted(asked):
    long, short = "start " + "of a long story " * 40, "a short story "
    value, _ = asked.loglikelihood(instances("loglikelihood", [(short, "ends")]))[0]
    assert math.isfinite(value) and asked.take_changes() == {}
    limit = 255 if isinstance(asked, VllmModel) else 257
    kept = long[-(limit - 4 - 1) :]
    found = asked.loglikelihood(instances("loglikelihood", [(long, "ends"), (kept, "ends")]))
    assert found[0] == found[1] and asked.take_changes() == {CUT: 1}


def test_what_was_changed_outlives_the_process(random_model, tmp_path):
    model = load_model(random_model, spec())
    model.template = None
    requests = instances("generate_until", [(f"question {number} ", {"until": [], "max_gen_toks": 500}) for number in range(5)])
    for _ in range(2):
        kept = Kept(model, Answers(str(tmp_path)), first=2)
        kept.generate_until(requests)
        assert kept.changes == {SHORTENED: 5}


def overflowing(weights: dict[str, Any]) -> None:
    weights["lm_head.weight"].sign_().mul_(3e38)


@pytest.mark.parametrize("backend", ["vllm", "hf"])
@pytest.mark.parametrize("how", ["nan", "overflow"])
def test_a_model_without_numbers_has_no_score(random_model, tmp_path, backend, how):
    """NaN in a layer; or finite weights whose logits are not."""
    broken = str(tmp_path / how)
    if how == "nan":
        spoiled(random_model, tmp_path / how, "model.layers.1.mlp.up_proj.weight")
    else:
        copied(random_model, tmp_path / how, overflowing)
    for ask in (
        lambda model: model.generate_until(instances("generate_until", [("text", {"until": ["\n"], "max_gen_toks": 4})])),
        lambda model: model.loglikelihood(instances("loglikelihood", [("text", "ending"), ("text", "another")])),
        lambda model: model.loglikelihood_rolling(instances("loglikelihood_rolling", [("a text",)])),
    ):
        looked_at = backend == "hf" and how == "nan"  # as it is loaded
        with pytest.raises(UserError, match="holds NaN" if looked_at else "not finite") as caught:
            ask(load_model(broken, spec(backend=backend)))
        assert caught.value.where == (f"{broken}/model.safetensors" if looked_at else broken)
