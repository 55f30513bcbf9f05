"""The AlpacaEval stage whole: a planted model's answers, judged by a scripted endpoint, by vLLM's own server, and by a model
in the process."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alone import Alone
from judgeserver import JudgeServer
from tinymodels import weights_of

from cft_ray.data.encoding import Encoder
from cft_ray.errors import StageFailed, UserError
from cft_ray.evaluation.alpaca_eval.annotator import Annotator
from cft_ray.evaluation.alpaca_eval.items import Item
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.settings import GenerationSettings, JudgeSettings, ScratchModel, Template
from cft_ray.metrics.schemas import body_schema
from cft_ray.plan.specs import EvaluateSpec, ItemsSource
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages.evaluate import run

ITEMS = 8
LONG = ScratchModel(layers=2, hidden_size=128, heads=4, kv_heads=2, intermediate_size=128, max_positions=4096)
"""A judge's prompt has some 2,000 bytes."""
WEIGHTED = "weighted_alpaca_eval_gpt4_turbo"
START = 300.0
"""seconds that vLLM's server may take to start"""


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> str:
    """Eight instructions; the reference of the last is what the planted model answers: a tie that no judge is asked about."""
    rows = [{"instruction": f"instruction {number}", "output": f"reference {number}"} for number in range(ITEMS - 1)]
    path = tmp_path_factory.mktemp("items") / "eval.parquet"
    pq.write_table(pa.Table.from_pylist([*rows, {"instruction": "instruction 7", "output": "MARK"}]), path)
    return str(path)


@pytest.fixture(scope="module")
def undecided(tmp_path_factory) -> str:
    """A judge with random weights."""
    from cft_ray.training.model import create

    return str(create(LONG, 5, tmp_path_factory.mktemp("undecided")))


@pytest.fixture(scope="module")
def first_is_better(tmp_path_factory) -> str:
    """A judge whose next token is always `m`, the name of the answer that stands first."""
    from transformers import AutoTokenizer

    from cft_ray.training.model import create

    folder = create(LONG, 0, tmp_path_factory.mktemp("first"))
    (token,) = AutoTokenizer.from_pretrained(folder)("m", add_special_tokens=False).input_ids
    with weights_of(folder) as weights:
        for name, tensor in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")):
                tensor.zero_()
        weights["model.embed_tokens.weight"][:, 0] = 1.0
        weights["lm_head.weight"][token, 0] = 1.0
    return str(folder)


def context(root: Path, items: str, models: dict[str, str], judge: JudgeSettings, **changes: Any) -> Alone:
    """``models``: role -> folder; others fail the test when they are asked for."""
    declared = BENCHMARKS["alpaca_eval"]
    spec = EvaluateSpec(
        **{
            "benchmark": "alpaca_eval",
            "ability": declared.ability,
            "tasks": declared.tasks,
            "metric": declared.metric,
            "generation": GenerationSettings(max_length=256, max_new_tokens=16),
            "template": Template(name="toy"),
            "items": ItemsSource(files={"scored": items}),
            "judge": judge,
        }
        | changes
    )
    return Alone(root, Stage(spec, {"model": "a" * 64}, resources=Resources(cpus=1)), models=models)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    """Prefers the model's answer to items 0, 1 and 2."""
    running = JudgeServer(wins=lambda number: number < 3)
    yield running
    running.close()


def endpoint(server: JudgeServer, **changes: Any) -> JudgeSettings:
    return JudgeSettings(**{"model": "planted", "base_url": server.url, "retries": 2} | changes)


def test_an_endpoint_judges_what_the_model_answers(tmp_path, planted, items, server):
    asked = endpoint(server, prompt_price=1.0, completion_price=2.0)
    found = context(tmp_path, items, {"model": planted}, asked)
    outputs = run(found)
    rate = (3 + 0.5) / ITEMS
    assert (outputs["en"], outputs["mean"]) == (pytest.approx(rate), pytest.approx(rate))
    assert (outputs["judged"], outputs["malformed"], outputs["refused"], outputs["unanswered"]) == (ITEMS, 0, 0, 0)
    assert (outputs["judge_prompt_tokens"], outputs["judge_completion_tokens"]) == (700, 70)
    assert outputs["judge_price"] == pytest.approx((700 * 1.0 + 70 * 2.0) / 1e6)
    assert server.judged == dict.fromkeys(range(ITEMS - 1), 1)
    assert all('"""MARK"""' in body["messages"][1]["content"] for body in server.bodies)
    scores = pq.read_table(found.output / "tables" / "scores.parquet")
    samples = pq.read_table(found.output / "tables" / "samples.parquet")
    assert scores.schema.equals(body_schema("scores")) and samples.schema.equals(body_schema("samples"))
    assert {row["metric"]: row["n"] for row in scores.to_pylist()} == dict.fromkeys(
        ("win_rate", "discrete_win_rate", "length_controlled_win_rate_minimal"), ITEMS
    )
    assert [(row["response"], row["metrics"][0]["value"]) for row in samples.to_pylist()] == [
        *[("MARK", 1.0)] * 3,
        *[("MARK", 0.0)] * 4,
        ("MARK", 0.5),
    ]


def test_a_stage_that_died_asks_neither_model_nor_judge_again(tmp_path, planted, items, server):
    server._script[5] = [500] * 9
    first = context(tmp_path / "first", items, {"model": planted}, endpoint(server, tolerate=0.0, max_concurrency=1))
    with pytest.raises(StageFailed, match="unanswered"):
        run(first)
    before = dict(server.requests)
    assert set(server.judged) == {0, 1, 2, 3, 4}
    server._script[5] = []
    again = context(tmp_path / "first", items, {}, endpoint(server, tolerate=0.0))
    assert run(again)["judged"] == ITEMS
    assert server.judged == dict.fromkeys(range(ITEMS - 1), 1)
    assert {number: count for number, count in server.requests.items() if number < 5} == {
        number: count for number, count in before.items() if number < 5
    }


def test_transformers_answers_as_well_and_limits_hold(tmp_path, planted, items, server):
    found = context(tmp_path, items, {"model": planted}, endpoint(server), backend="hf", limit=2)
    outputs = run(found)
    assert outputs["en"] == 1.0 and outputs["judged"] == 2
    assert {row["response"] for row in pq.read_table(found.output / "tables" / "samples.parquet").to_pylist()} == {"MARK"}


def test_mistakes_show_before_the_model_is_asked(tmp_path, items, server, monkeypatch):
    monkeypatch.delenv("CFT_TEST_KEY", raising=False)
    with pytest.raises(UserError, match="CFT_TEST_KEY"):
        run(context(tmp_path, items, {}, endpoint(server, key_env="CFT_TEST_KEY")))
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1"):
        run(context(tmp_path, items, {}, JudgeSettings(model="m", base_url="http://127.0.0.1:9/v1", retries=0)))
    with pytest.raises(UserError, match="absent"):
        run(context(tmp_path, str(tmp_path / "absent.parquet"), {}, endpoint(server)))


def test_a_local_judge_decides_as_transformers_computes(tmp_path, planted, undecided, items):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = JudgeSettings(annotator=WEIGHTED, template=Template(name="plain"))
    found = context(tmp_path, items, {"model": planted, "judge": undecided}, asked)
    outputs = run(found)
    tokenizer: Any = AutoTokenizer.from_pretrained(undecided)
    model = AutoModelForCausalLM.from_pretrained(undecided, dtype=torch.float32)
    letters = tokenizer("mM", add_special_tokens=False).input_ids
    annotator, tokens = Annotator(asked), 0
    expected = []
    for number in range(ITEMS - 1):
        question = annotator.question(Item(number, f"instruction {number}", f"reference {number}"), "MARK")
        system, user = (message["content"] for message in question.messages)
        (ids,) = Encoder(tokenizer, asked.template).prompts([{"system": system, "instruction": user}])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        first = float(torch.softmax(logits[letters], 0)[0])
        expected.append(first if question.switched else 1 - first)
        tokens += len(ids)
    samples = pq.read_table(found.output / "tables" / "samples.parquet").to_pylist()
    assert [row["metrics"][0]["value"] for row in samples] == pytest.approx([*expected, 0.5], abs=1e-4)
    assert outputs["en"] == pytest.approx(sum([*expected, 0.5]) / ITEMS, abs=1e-4)
    assert (outputs["judge_prompt_tokens"], outputs["judge_completion_tokens"]) == (tokens, ITEMS - 1)


def test_a_local_judge_that_cannot_judge_says_so(tmp_path, planted, undecided, items):
    models = {"model": planted, "judge": undecided}
    short = JudgeSettings(annotator=WEIGHTED, template=Template(name="plain"), max_length=512)
    with pytest.raises(StageFailed, match=r"refused.*do not fit"):
        run(context(tmp_path, items, models, short))
    unknown = JudgeSettings(template=Template(name="plain"), parameters={"best_of": 2})
    with pytest.raises(UserError, match="nowhere"):
        run(context(tmp_path, items, {"judge": "nowhere"}, unknown))
    with pytest.raises(UserError, match="best_of"):
        run(context(tmp_path, items, models, unknown))
    ranking = JudgeSettings(template=Template(name="plain"), parameters={"max_tokens": 8})
    with pytest.raises(StageFailed, match="malformed"):
        run(context(tmp_path, items, models, ranking))


@pytest.fixture(scope="module")
def vllm_server(first_is_better) -> Iterator[str]:
    """vLLM's own OpenAI-compatible server, with the judge under the name `tiny`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {
        "--model": first_is_better,
        "--served-model-name": "tiny",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": "4096",
        "--max-num-batched-tokens": "4096",
        "--max-num-seqs": "8",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    process = subprocess.Popen(
        [*command, *(part for pair in arguments.items() for part in pair)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    end = time.monotonic() + START
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            assert process.poll() is None and time.monotonic() < end, "vLLM's server does not start"
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait(60)


def test_vllms_own_server_judges(tmp_path, planted, items, vllm_server):
    asked = JudgeSettings(model="tiny", base_url=vllm_server, annotator=WEIGHTED)
    found = context(tmp_path, items, {"model": planted}, asked)
    outputs = run(found)
    annotator = Annotator(asked)
    switched = [
        annotator.question(Item(number, f"instruction {number}", ""), "").switched for number in range(ITEMS - 1)
    ]  # the first always wins: the model's answer where it stands first
    samples = pq.read_table(found.output / "tables" / "samples.parquet").to_pylist()
    assert [row["metrics"][0]["value"] for row in samples] == pytest.approx([*map(float, switched), 0.5], abs=1e-3)
    assert outputs["judge_completion_tokens"] == ITEMS - 1 and outputs["judge_prompt_tokens"] > 1000 * (ITEMS - 1)
    unknown = context(tmp_path / "unknown", items, {"model": planted}, asked.model_copy(update={"model": "other"}))
    with pytest.raises(UserError, match="other"):
        run(unknown)
    ranking = context(tmp_path / "ranking", items, {"model": planted}, asked.model_copy(update={"annotator": "alpaca_eval_gpt4"}))
    with pytest.raises(StageFailed, match="malformed"):
        run(ranking)
