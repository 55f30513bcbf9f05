"""What surrounds a training in its stage: rows, live steps, names of what was looked at."""

import dataclasses
import threading
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alone import Alone

from cft_ray.data.rows import table
from cft_ray.grid.settings import ScratchModel, Template, TrainingSettings
from cft_ray.plan.specs import Checkpoint, DriftSpec, FinetuneSpec, StrategyRef
from cft_ray.plan.stage import Stage
from cft_ray.stages import finetune, runner, sides


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


def test_no_training_fails_for_want_of_a_reporter(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(finetune, "REPORT_SECONDS", 60.0)
    context = made(tmp_path)
    context.refuses = 1
    live = finetune._LiveSteps(context)
    live.add(row(1), 1)
    live.close()
    assert context.reported == [] and "no reporter" in caplog.text


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
