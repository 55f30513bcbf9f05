"""The replay stage on real vLLM: who answers, in which order, and that neither the road, nor batches, nor a kill matter."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from alone import Alone
from ray import cloudpickle
from tinymodels import ending_a_turn

from cft_ray.data.accounts import RowAccount
from cft_ray.data.rows import table, write_rows
from cft_ray.generation import batches
from cft_ray.generation.requests import Answer, Prompt
from cft_ray.grid.settings import EngineSettings, ReplaySampling, Template
from cft_ray.plan.specs import ReplaySpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages.replay import run
from cft_ray.strategies.selection import select

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file
PROMPTS = 40
ENDS = (1,)
"""end of sequence of the byte tokenizer"""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    rows = [
        {"id": f"p{number}", "language": "en", "instruction": f"Do thing {number}", "input": "", "output": "original"}
        for number in range(PROMPTS)
    ]
    rows[7]["instruction"] = "a very long thing to do " * 20  # leaves no room for an answer
    write_rows(folder / "rows.parquet", [table(rows)])
    return folder


def context(root: Path, model: str, prompts: Path, ratio: float = 0.5, template: str = "toy", **sampling: Any) -> Alone:
    settings = ReplaySampling(**{"max_new_tokens": 12, "max_length": 256, **sampling})
    spec = ReplaySpec(ratio=ratio, template=Template.model_validate({"name": template}), sampling=settings, seed=5)
    inputs = {"model": "a" * 64, "prompts": "b" * 64, "target": "c" * 64}
    stage = Stage(spec, inputs, resources=Resources(workers=1, cpus=1))
    return Alone(root, stage, {"prompts": prompts}, {"model": model}, {"target": {"rows": 100}})


def rows_of(made: Alone) -> list[dict[str, Any]]:
    return pq.read_table(made.output / "rows.parquet").to_pylist()


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, ray_session, random_model, prompts) -> tuple[Alone, dict[str, Any]]:
    """50 answers to 40 prompts, sampled at temperature 1 from the random model."""
    made = context(tmp_path_factory.mktemp("whole"), random_model, prompts)
    return made, run(made)


def test_the_model_given_answers(tmp_path, ray_session, planted, prompts):
    made = context(tmp_path, planted, prompts, temperature=0.0)
    outputs = run(made)
    rows = rows_of(made)
    answered = [row for row in rows if row["prompt_id"] != "p7"]
    assert {row["output"] for row in answered} == {"MARK"}
    assert {row["finish_reason"] for row in answered} == {"stop"}
    unanswered = len(rows) - len(answered)
    assert unanswered and {row["finish_reason"] for row in rows if row["prompt_id"] == "p7"} == {"no_room"}
    account = RowAccount.model_validate(outputs.pop("account")).checked("replay")
    assert (account.came, account.used, account.noted) == (50, 50, {"empty": unanswered, "truncated": unanswered})
    assert outputs == {"rows": 50, "tokens": 5 * len(answered), "empty": unanswered, "truncated": unanswered}
    assert made.shown[-1]["done"] == made.shown[-1]["total"] == 50


def test_an_answer_ends_where_it_is_taught_to(tmp_path, ray_session, planted, prompts):
    """At the chat template's end of a turn, which is not the end of sequence that the model's files name."""
    model = ending_a_turn(planted, tmp_path / "turns")
    made = context(tmp_path, model, prompts, ratio=0.05, template="chat", temperature=0.0)
    run(made)
    assert {(row["output"], row["finish_reason"]) for row in rows_of(made) if row["prompt_id"] != "p7"} == {("MARK", "stop")}


def test_rows_are_the_selected_prompts_in_order(sampled):
    rows = rows_of(sampled[0])
    chosen, passes = select(PROMPTS, 50, 5)
    assert [row["prompt_id"] for row in rows] == [f"p{index}" for index in chosen]
    assert [row["pass"] for row in rows] == passes.tolist() == [0] * 40 + [1] * 10
    assert len({row["id"] for row in rows}) == 50
    assert next(row["instruction"] for row in rows if row["prompt_id"] == "p3") == "Do thing 3"
    first = {row["prompt_id"]: row["output"] for row in rows[:40]}
    again = {row["prompt_id"]: row["output"] for row in rows[40:]}
    assert sum(first[name] != output for name, output in again.items()) >= 8  # a second pass has seeds of its own


def test_smaller_ratio_is_a_prefix_and_a_killed_run_goes_on(tmp_path, sampled, random_model, prompts):
    """Twenty answers of an earlier attempt are kept, whatever they are; the others come out as in one undisturbed run."""
    whole = rows_of(sampled[0])
    earlier = pa.concat_tables([pq.read_table(part) for part in (sampled[0].scratch / "answers").glob("*.parquet")])
    made = context(tmp_path, random_model, prompts, ratio=0.3)
    kept = [row | {"text": "kept"} for row in earlier.to_pylist() if row["index"] in range(5, 25)]
    (made.scratch / "answers").mkdir()
    pq.write_table(pa.Table.from_pylist(kept), made.scratch / "answers" / "000000000005-20.parquet")
    assert run(made)["rows"] == 30
    rows = rows_of(made)
    fresh = [index for index in range(30) if index not in {row["index"] for row in kept}]
    assert [rows[index] for index in fresh] == [whole[index] for index in fresh]
    assert {rows[row["index"]]["output"] for row in kept} == {"kept"}


def test_counts(sampled):
    made, outputs = sampled
    rows = rows_of(made)
    assert outputs["rows"] == 50
    assert outputs["empty"] == sum(not row["output"].strip() for row in rows)
    assert outputs["truncated"] == sum(row["finish_reason"] != "stop" for row in rows) > 0


def by_ray_data(model: str, asked: list[Prompt]) -> list[Answer]:
    """The answers of an engine that has a CPU of its own; in a process of its own, as Ray Data has one context a process."""
    sampling = ReplaySampling(max_new_tokens=12, max_length=256)
    return list(batches.answers(model, asked, sampling, EngineSettings(), ENDS, Resources(workers=1, cpus=1)))


def test_two_replays_by_ray_data_on_all_cpus_end_with_the_answers_of_one_engine(
    tmp_path, sampled, random_model, prompts, monkeypatch
):
    """What Ray Data runs beside the engines is in the stages' demand: else both wait for a CPU for ever."""
    assert ray.cluster_resources()["CPU"] == 2
    whole = sampled[0]
    again = context(tmp_path, random_model, prompts)
    asked: list[Prompt] = []
    monkeypatch.setattr(batches, "answers", lambda model, given, *rest: iter(asked.extend(given) or ()))
    again.stage = dataclasses.replace(again.stage, resources=Resources(workers=2))
    with pytest.raises(KeyError):  # nothing is answered
        run(again)
    monkeypatch.undo()
    task = ray.remote(by_ray_data).options(num_cpus=0)
    both = ray.get([task.remote(random_model, asked) for _ in range(2)], timeout=300)
    one = {row["index"]: row for part in (whole.scratch / "answers").glob("*.parquet") for row in pq.read_table(part).to_pylist()}
    for found in both:
        assert {answer.index: vars(answer) for answer in found} == one
