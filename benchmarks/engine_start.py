"""Seconds until vLLM can answer: in a fresh process, for the next model of the same shape, and beside a bare `vllm.LLM`.

    python benchmarks/engine_start.py --models 5

Tiny models of one shape with different weights, greedy answers of 16 tokens. In a process that has imported nothing: the
time of `import vllm`, of the first engine, of its first answers (compilation), and then of every further model, loaded into
the running engine, with its answers. The peer is what a stage without a shared engine pays in a process that has imported
vLLM already: a new `vllm.LLM` for each model, answers included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import ROOT, record

QUESTIONS = 32


def created(folder: Path, count: int) -> list[str]:
    """Folders of models of one shape."""
    from cft_ray.grid.settings import ScratchModel
    from cft_ray.training.model import create

    shape = ScratchModel(
        architecture="llama", hidden_size=128, layers=4, heads=4, kv_heads=2, intermediate_size=256, max_positions=512
    )
    return [str(create(shape, seed, folder / str(seed))) for seed in range(count)]


def ours(models: list[str]) -> dict[str, Any]:
    """As the stages do, in this process."""
    begin = time.perf_counter()
    from cft_ray.generation import engine, settings

    arguments = [engine_settings(model) for model in models]
    settings.prepare_environment()
    import vllm  # noqa: F401

    imported = time.perf_counter()
    held = engine.load(arguments[0])
    started = time.perf_counter()
    answer(held)
    first = time.perf_counter()
    later = []
    for each in arguments[1:]:
        start = time.perf_counter()
        answer(engine.load(each))
        later.append(time.perf_counter() - start)
    engine.unload()
    return {"import": imported - begin, "engine": started - imported, "first_answers": first - started, "later": later}


def bare(models: list[str]) -> dict[str, Any]:
    """A new engine for each model, in this process, once vLLM is imported and has run."""
    from cft_ray.generation import engine

    later = []
    for model in models:
        start = time.perf_counter()
        answer(engine.load(engine_settings(model)))
        later.append(time.perf_counter() - start)
        engine.unload()
    return {"later": later[1:]}


def engine_settings(model: str) -> dict[str, Any]:
    from cft_ray.generation.settings import device, engine_arguments

    return engine_arguments(model, dtype="float32", max_length=128, seed=0, on=device())


def answer(engine: Any) -> None:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [5 + number % 40, 7, 9, 11]} for number in range(QUESTIONS)]
    engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True), use_tqdm=False)


def separate(contender: str, models: list[str]) -> dict[str, Any]:
    """In a process of its own; the last line that it prints is its figures."""
    command = [sys.executable, __file__, "--contender", contender, *models]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--contender", choices=["ours", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps({"ours": ours, "bare": bare}[arguments.contender](arguments.folders)))
        return
    with tempfile.TemporaryDirectory(prefix="cft-ray-engines-") as folder:
        models = created(Path(folder), arguments.models)
        found, peer = separate("ours", models), separate("bare", models)
    later, start = statistics.median(found["later"]), statistics.median(peer["later"])
    figures = {
        "seconds_import": round(found["import"], 2),
        "seconds_first_engine": round(found["engine"], 2),
        "seconds_first_answers": round(found["first_answers"], 2),
        "seconds_next_model": [round(each, 3) for each in found["later"]],
        "seconds_next_model_median": round(later, 3),
        "seconds_new_engine": [round(each, 3) for each in peer["later"]],
        "seconds_new_engine_median": round(start, 3),
        "ratio_next_model_to_new_engine": round(later / start, 3),
    }
    print(record("engine_start", f"python benchmarks/engine_start.py --models {arguments.models}", figures), figures)


if __name__ == "__main__":
    main()
