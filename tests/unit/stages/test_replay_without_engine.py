"""The replay stage around its engine: what is asked, what is kept of a run that was killed, what is written."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from alone import Alone
from transformers import AutoTokenizer, LlamaConfig

from cft_ray.data.rows import table, write_rows
from cft_ray.errors import UserError
from cft_ray.generation.requests import Answer
from cft_ray.grid.settings import ReplaySampling, Template
from cft_ray.plan.specs import ReplaySpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages import replay
from cft_ray.strategies.selection import select
from cft_ray.training.model import byte_tokenizer

COUNT = 6
"""prompts; eight answers are asked for"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder that has no weights, only what is asked of it before an engine loads it: 40 positions."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer(40)
    LlamaConfig(max_position_embeddings=40, eos_token_id=7).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def made(root: Path, model: str, instructions: list[str], template: str = "toy", **sampling: Any) -> Alone:
    rows = [{"id": f"p{n}", "language": "en", "instruction": text, "output": "own"} for n, text in enumerate(instructions)]
    (root / "prompts").mkdir(parents=True, exist_ok=True)
    write_rows(root / "prompts" / "rows.parquet", [table(rows)])
    spec = ReplaySpec(
        ratio=0.1, template=Template.model_validate({"name": template}), sampling=ReplaySampling(**sampling), seed=3
    )
    stage = Stage(spec, {"model": "a" * 64, "prompts": "b" * 64, "target": "c" * 64}, resources=Resources(workers=1, cpus=1))
    return Alone(root, stage, {"prompts": root / "prompts"}, {"model": model}, {"target": {"rows": 80}})


INSTRUCTIONS = [f"Say {number}" for number in range(COUNT - 1)] + ["x" * 37]


@pytest.fixture
def engine(monkeypatch) -> list[Any]:
    """Answers each prompt with its place, three at a time, in the place of vLLM; what it was asked."""
    asked: list[Any] = []

    def answers(model: str, prompts: Any, *_: Any) -> Any:
        asked.extend(prompts)
        said = [Answer(prompt.index, f" {prompt.index} ", 2, "stop") for prompt in prompts]
        yield from (said[start : start + 3] for start in range(0, len(said), 3))

    monkeypatch.setattr(replay.single, "answers", answers)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test's Ray has no such engine
    return asked


def test_what_is_asked_and_what_is_written(tmp_path, model, engine):
    context = made(tmp_path, model, INSTRUCTIONS, max_new_tokens=30, max_length=100)
    outputs = replay.run(context)
    rows, passes = select(COUNT, 8, 3)
    long = [place for place, row in enumerate(rows) if row == COUNT - 1]  # fills the model's 40 positions, no more
    assert [prompt.index for prompt in engine] == [place for place in range(8) if place not in long]
    tokenizer = AutoTokenizer.from_pretrained(model)
    for prompt in engine:
        row, number = int(rows[prompt.index]), int(passes[prompt.index])
        tokens = tokenizer(INSTRUCTIONS[row] + " =").input_ids
        assert prompt.tokens == tokens and prompt.new_tokens == min(30, 40 - len(tokens))
        assert prompt.seed == replay.answer_seed(3, row, number)
    assert len({prompt.seed for prompt in engine}) == len(engine)
    written = pq.read_table(context.output / "rows.parquet").to_pylist()
    for place, row in enumerate(written):
        source, cut = int(rows[place]), place in long
        assert (row["id"], row["prompt_id"], row["pass"]) == (f"replay/p{source}/{passes[place]}", f"p{source}", passes[place])
        assert (row["instruction"], row["output"]) == (INSTRUCTIONS[source], "" if cut else f" {place} ")
        assert row["finish_reason"] == ("no_room" if cut else "stop")
    assert set(passes) == {0, 1} and long
    assert (outputs["rows"], outputs["tokens"]) == (8, 2 * len(engine))
    assert outputs["empty"] == outputs["truncated"] == len(long)
    account = outputs["account"]
    assert (account["came"], account["used"], account["noted"]) == (8, 8, {"empty": len(long), "truncated": len(long)})
    first, last = context.shown[0], context.shown[-1]
    assert (first["done"], first["total"]) == (len(long), 8) and (last["done"], last["total"]) == (8, 8)


def test_a_run_that_is_killed_goes_on_with_what_is_not_answered(tmp_path, model, engine, monkeypatch):
    monkeypatch.setattr(replay, "PART_ROWS", 3)
    context = made(tmp_path, model, ["a", "b", "c"], template="chat")

    def killed(model: str, prompts: Any, *_: Any) -> Any:
        yield [Answer(prompt.index, "before", 1, "length") for prompt in prompts[2:5]]
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(replay.single, "answers", killed)
        dying.setattr(replay, "SENT_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            replay.run(context)
    replay.run(context)
    assert [prompt.index for prompt in engine] == [0, 1, 5, 6, 7]
    outputs = [row["output"] for row in pq.read_table(context.output / "rows.parquet").to_pylist()]
    assert outputs == ["0", "1", "before", "before", "before", "5", "6", "7"]  # of a chat, without white space around them
    assert not [path.name for path in (context.scratch / "answers").iterdir() if path.name.startswith(".")]
    engine.clear()
    assert replay.run(context)["truncated"] == 3 and engine == []


def test_a_prompt_without_text_is_refused(tmp_path, model, engine, monkeypatch):
    tokenizer = byte_tokenizer(40)
    tokenizer.backend_tokenizer.post_processor = None  # one that puts no token in front
    folder = tmp_path / "bare"
    LlamaConfig().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="a prompt is empty"):
        replay.run(made(tmp_path, str(folder), ["", "b"], template="plain"))
