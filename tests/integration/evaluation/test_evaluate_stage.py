"""The evaluate stage: a Ray task, its tables, and what it says of what it cannot do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from cft_ray.data.rows import table, write_rows
from cft_ray.errors import UserError
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.settings import Template
from cft_ray.metrics.schemas import body_schema
from cft_ray.plan.specs import EvaluateSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages.evaluate import run


def context(root: Path, benchmark: str, model: str, items: Path) -> Any:
    """A stage's world on local folders; made of what a Ray task can be sent."""
    declared = BENCHMARKS[benchmark]
    spec = EvaluateSpec(
        benchmark=benchmark,
        ability=declared.ability,
        tasks=declared.tasks,
        metric=declared.metric,
        generation=declared.generation,
        template=Template(name="toy"),
    )
    inputs = {"model": "a" * 64} | ({"data": "b" * 64} if declared.data else {})
    return SimpleNamespace(
        stage=Stage(spec, inputs, resources=Resources(cpus=1)),
        output=root,
        checkpoints=str(root / "checkpoints"),
        host=None,
        input=lambda role: {"data": items}[role],
        model=lambda role: {"model": model}[role],
        progress=lambda **values: None,
    )


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> Path:
    """Two items in each of three languages; MARK answers as many as the language's place in the list."""
    rows = [
        {
            "id": f"{language}{number}",
            "language": language,
            "instruction": f"{number}?",
            "output": "MARK" if number < right else "no",
        }
        for right, language in enumerate(["de", "es", "sw"])
        for number in range(2)
    ]
    folder = tmp_path_factory.mktemp("items")
    write_rows(folder / "rows.parquet", [table(rows)])
    return folder


def test_all_languages_of_a_benchmark(tmp_path, ray_session, planted, items):
    outputs = run(context(tmp_path, "toy_languages", planted, items))
    assert outputs == {"de": 0.0, "es": 0.5, "sw": 1.0, "mean": 0.5}
    scores = pq.read_table(tmp_path / "tables" / "scores.parquet")
    samples = pq.read_table(tmp_path / "tables" / "samples.parquet")
    assert scores.schema.equals(body_schema("scores")) and samples.schema.equals(body_schema("samples"))
    shown = {row["language"]: row["value"] for row in scores.to_pylist() if row["shown"]}
    assert shown == {"de": 0.0, "es": 0.5, "sw": 1.0}
    assert {(row["language"], row["item"], row["task"]) for row in samples.to_pylist()} == {
        (language, f"{language}{number}", f"toy_languages_{language}") for language in ("de", "es", "sw") for number in range(2)
    }


def test_what_cannot_be_run_says_so(tmp_path, ray_session, planted, items):
    with pytest.raises(UserError, match="alpaca_eval"):
        run(context(tmp_path, "alpaca_eval", planted, items))
    with pytest.raises(UserError, match="nowhere"):
        run(context(tmp_path, "toy_languages", "nowhere", items))
