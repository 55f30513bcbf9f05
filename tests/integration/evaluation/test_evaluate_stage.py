"""The evaluate stage: a Ray task, its tables, and what it says of what it cannot do."""

import dataclasses
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from alone import Alone
from ray import cloudpickle

from cft_ray.data.rows import table, write_rows
from cft_ray.errors import UserError
from cft_ray.execute.hosts import Hosts
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.settings import Template
from cft_ray.metrics.schemas import body_schema
from cft_ray.plan.specs import EvaluateSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages.context import StageContext
from cft_ray.stages.evaluate import run

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


def context(root: Path, benchmark: str, model: str, items: Path) -> Alone:
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
    return Alone(root, Stage(spec, inputs, resources=Resources(cpus=1)), {"data": items}, {"model": model})


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
    made = context(tmp_path, "toy_languages", planted, items)
    outputs = run(made)
    assert outputs == {"de": 0.0, "es": 0.5, "sw": 1.0, "mean": 0.5}
    scores = pq.read_table(made.output / "tables" / "scores.parquet")
    samples = pq.read_table(made.output / "tables" / "samples.parquet")
    assert scores.schema.equals(body_schema("scores")) and samples.schema.equals(body_schema("samples"))
    shown = {row["language"]: row["value"] for row in scores.to_pylist() if row["shown"]}
    assert shown == {"de": 0.0, "es": 0.5, "sw": 1.0}
    assert {(row["language"], row["item"], row["task"]) for row in samples.to_pylist()} == {
        (language, f"{language}{number}", f"toy_languages_{language}") for language in ("de", "es", "sw") for number in range(2)
    }


def test_two_benchmarks_in_one_host_load_the_model_once(tmp_path, ray_session, planted, items):
    needs, hosts = Resources(cpus=1, gpus=1), Hosts("test")
    name = hosts.named("host", needs)
    assert name is not None
    made = []
    for limit in (1, 2):
        world = context(tmp_path / str(limit), "toy_languages", planted, items)
        spec = world.stage.spec.model_copy(update={"limit": limit})
        world.stage, world.host = dataclasses.replace(world.stage, spec=spec, resources=needs), name
        outputs = run(world)
        made.append(ray.get(ray.get_actor(name).run.remote(loaded, world)))
    hosts.close()
    assert made[0] == made[1] and made[0] is not None and outputs["mean"] == 0.5


def loaded(context: StageContext) -> int | None:
    """Which engine the process holds."""
    from cft_ray.generation import engine

    return None if engine._held is None else id(engine._held.engine)


def test_what_cannot_be_run_says_so(tmp_path, ray_session, planted, items):
    with pytest.raises(UserError, match="alpaca_eval"):
        run(context(tmp_path, "alpaca_eval", planted, items))
    with pytest.raises(UserError, match="nowhere"):
        run(context(tmp_path, "toy_languages", "nowhere", items))
