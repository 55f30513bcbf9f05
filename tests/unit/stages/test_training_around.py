"""What surrounds a training in its stage: rows, live steps, names of what was looked at."""

import dataclasses
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from alone import Alone

from cft_ray.data.accounts import RowAccount
from cft_ray.data.rows import table
from cft_ray.errors import StageFailed, UserError
from cft_ray.grid.settings import ScratchModel, Template, TrainingSettings
from cft_ray.plan.specs import Checkpoint, DriftSpec, FinetuneSpec, SimilaritySpec, StrategyRef
from cft_ray.plan.stage import Stage
from cft_ray.stages import finetune, runner, sides, similarity
from cft_ray.training import loop


class Watched(Alone):
    """Keeps reported rows; ``refuses``: how often that fails before."""

    refuses = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reported: list[tuple[str, list[int], int]] = []
        self.heard = threading.Event()

    def report(self, table: str, rows: Any, sequence: int) -> None:
        if self.refuses:
            self.refuses -= 1
            raise ConnectionError("no reporter")
        self.reported.append((table, [row["step"] for row in rows], sequence))
        self.heard.set()


def made(root: Any, **changes: Any) -> Watched:
    (root / "data").mkdir()
    rows = [{"id": f"r{n}", "language": "en", "instruction": f"say {n}", "output": "x"} for n in range(10)]
    pq.write_table(table(rows), root / "data" / "rows.parquet")
    training = TrainingSettings(learning_rate=1e-3, steps=3, batch_size=1)
    spec = FinetuneSpec(**{"scratch": ScratchModel(), "template": Template(name="plain"), "training": training, **changes})
    return Watched(root, Stage(spec, {"data": "0" * 64}), {"data": root / "data"})


def row(step: int) -> dict[str, Any]:
    return {"step": step, "loss": float(step), "tokens_per_s": 10.0 * step}


def test_steps_are_sent_while_it_trains_and_the_rest_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "REPORT_SECONDS", 0.01)
    context = made(tmp_path)
    live = finetune._LiveSteps(context)
    live.add(row(5), 9)
    assert context.heard.wait(20)
    monkeypatch.setattr(finetune, "REPORT_SECONDS", 60.0)
    live.add(row(6), 9)
    live.add(row(7), 9)
    live.close()
    assert not live._thread.is_alive()
    assert [step for _, steps, _ in context.reported for step in steps] == [5, 6, 7]
    assert all(name == "steps" and sequence == steps[0] for name, steps, sequence in context.reported)
    assert context.shown[-1] == {"done": 7, "total": 9, "unit": "steps", "loss": 7.0, "tokens_per_second": 70.0}


def test_no_training_fails_for_want_of_a_reporter(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "REPORT_SECONDS", 60.0)
    context = made(tmp_path)
    context.refuses = 1
    live = finetune._LiveSteps(context)
    live.add(row(1), 1)
    live.close()
    assert context.reported == [] and context.refuses == 0


def test_rows_are_those_of_the_data_set_with_the_strategys_and_which_were_cut(tmp_path):
    plain = finetune._rows(made(tmp_path))
    assert plain.num_rows == 10 and "finish_reason" not in plain.column_names
    (tmp_path / "again").mkdir()
    context = made(tmp_path / "again", strategy=StrategyRef(use="GR", version=1, settings={"ratio": 0.2}))
    answers = [{"id": "a", "language": "en", "instruction": f"p{n}", "output": f"answer {n}"} for n in range(3)]
    replay = table(answers).append_column("prompt_id", pa.array(["p0", "p1", "p2"])).append_column("pass", pa.array([0, 0, 0]))
    (tmp_path / "replay").mkdir()
    pq.write_table(replay.append_column("finish_reason", pa.array(["stop", "length", "stop"])), tmp_path / "replay/rows.parquet")
    context.stage = dataclasses.replace(context.stage, inputs={**context.stage.inputs, "replay": "1" * 64})
    context.inputs = {**context.inputs, "replay": tmp_path / "replay"}
    mixed = finetune._rows(context)
    assert mixed.column_names == [*plain.column_names, "finish_reason"]
    assert mixed["output"].to_pylist() == ["x"] * 10 + ["answer 0", "answer 1"]
    assert mixed["finish_reason"].to_pylist() == ["stop"] * 11 + ["length"]


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        (Checkpoint(hub="a/b", revision="c"), "a/b@c"),
        (Checkpoint(hub="a/b"), "a/b"),
        (Checkpoint(digest="d" * 64, path="/x"), "d" * 64),
        (Checkpoint(path="/x"), "/x"),
    ],
)
def test_what_tables_call_a_model(checkpoint, name):
    stage = Stage(DriftSpec(checkpoints={"left": checkpoint}), {"right": "f" * 64})
    assert (sides.name(stage, "left"), sides.name(stage, "right")) == (name, "f" * 64)


def test_a_kind_is_found_by_its_name(monkeypatch):
    from cft_ray.stages.dataset import run

    assert runner("dataset") is run
    with pytest.raises(ValueError, match="unknown stage kind 'datasets'"):
        runner("datasets")
    monkeypatch.setitem(runner.__globals__["SPECS"], "elsewhere", SimpleNamespace(module="cft_ray.stages.drift"))
    assert runner("elsewhere").__module__ == "cft_ray.stages.drift"


class Account:
    """What a training says of its rows."""

    used = 9

    def account(self, training: Any) -> RowAccount:
        return RowAccount(came=10, used=9, left_out={"too_long": 1})


SUMMARY = SimpleNamespace(
    steps=3,
    tokens=50,
    samples=12,
    counts=Account(),
    loss_first=2.0,
    loss_last=1.0,
    facts={},
    trainable_fraction=0.25,
    notes=("n",),
)


@pytest.fixture
def train(monkeypatch) -> list[Any]:
    """In the place of the training: writes one file, or raises what is put in."""
    ends: list[Any] = []

    def done(job: Any, live: Any, prove: Any) -> Any:
        if ends and isinstance(ends[0], Exception):
            raise ends[0]
        ends.append((job, live))
        Path(job.output).mkdir(exist_ok=True)
        (Path(job.output) / "weights").write_text("w")
        return SUMMARY

    monkeypatch.setattr(loop, "train", done)
    return ends


@pytest.mark.parametrize("facts", [{}, {"trainable_fraction": 0.1, "frozen_fraction": 0.8}])
def test_outputs_are_the_summarys_unless_the_strategy_says_otherwise(tmp_path, train, monkeypatch, facts):
    monkeypatch.setattr(SUMMARY, "facts", facts)
    outputs, away = finetune._train(made(tmp_path), None)
    assert not away and (tmp_path / "output" / "weights").exists()
    assert (outputs["steps"], outputs["tokens"], outputs["samples"], outputs["rows"]) == (3, 50, 12, 9)
    assert (outputs["loss_first"], outputs["loss_last"], outputs["notes"], outputs["strategy"]) == (2.0, 1.0, ["n"], facts)
    assert outputs["account"]["left_out"] == {"too_long": 1}
    shares = facts or {"trainable_fraction": 0.25, "frozen_fraction": 0.75}
    assert {name: outputs[name] for name in shares} == shares


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), UserError("x"), StageFailed("x")])
def test_where_an_error_was_raised_travels_with_it_unless_it_is_said_in_words(tmp_path, train, error):
    train.append(error)
    with pytest.raises(type(error)) as caught:
        finetune._train(made(tmp_path), None)
    notes = "".join(getattr(caught.value, "__notes__", []))
    assert ("in the training process" in notes and "ZeroDivisionError" in notes) is isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_alone_reports(tmp_path, train, monkeypatch, rank):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    finetune._train(made(tmp_path), None)
    assert (train[0][1] is not None) is (rank == 0)


@pytest.mark.parametrize("lost", [False, True])
def test_what_was_trained_elsewhere_is_brought_by_whoever_still_holds_the_stage(tmp_path, train, monkeypatch, lost):
    monkeypatch.setattr(finetune.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "there"))
    context = made(tmp_path)

    def prove() -> None:
        if lost:
            raise RuntimeError("taken over")

    context.prove = prove  # type: ignore[method-assign]
    if lost:
        with pytest.raises(RuntimeError, match="taken over"):
            finetune._train(context, "here")
        assert not Path(finetune._brought(context)).exists()
    else:
        assert finetune._train(context, "here")[1] and finetune._train(context, "there")[1] is False
        assert (tmp_path / "checkpoints" / "output-0001" / "weights").read_text() == "w"
        assert not (context.scratch / "output").exists()


@pytest.mark.parametrize("differs", [None, "embedder", "text", "dimension"])
def test_only_what_was_embedded_alike_is_compared(tmp_path, monkeypatch, differs):
    rows = [{"measure": name, "left": "l", "right": "r", "value": value} for name, value in (("des", 0.5), ("des_low", 0.4))]
    monkeypatch.setattr(similarity, "_compare", lambda context: [{"language": None, **each} for each in rows])
    left = {"data": "l", "embedder": "e", "text": "instruction", "dimension": 4}
    right = left | {"data": "r"} | ({differs: "other"} if differs else {})
    stage = Stage(SimilaritySpec(), {"left": "1" * 64, "right": "2" * 64})
    context = Alone(tmp_path, stage, summaries={"left": left, "right": right})
    if differs:
        with pytest.raises(UserError, match=f"in different ways: {differs}"):
            similarity.run(context)
        return
    found = similarity.run(context)
    assert (found["left"], found["right"], found["des"], found["des_low"], found["des_high"]) == ("l", "r", 0.5, 0.4, None)
    assert pq.read_table(tmp_path / "output" / "tables" / "similarity.parquet").num_rows == 2
