"""Replay's tokens per second as a share of a bare `vllm.LLM.generate` on the same prompts, engine start left out of both.

    python benchmarks/replay.py [--prompts 512] [--threads 1] [--repeats 3]

The model is Llama-shaped with random weights, large enough that the engine is the work. Both sides have the same engine
arguments (`cft_ray.generation.settings`), threads, token ids, seeds and answer lengths (32 to 96 tokens). Bare: the time
of one `generate` of a warm engine. Ours: the stage's own path, from the moment when Ray says that the actor that holds
the engine has been made (nothing is asked before) to the last answer.
"""

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from record import record

NEW_TOKENS = (32, 96)
PROMPT_WORDS = (5, 40)
MAX_LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--threads", type=int, default=max((os.cpu_count() or 2) - 1, 1), help="of either engine")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12, help="5 million parameters each")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when torch is imported, so it is imported below

    import ray

    from cft_ray.grid.settings import ReplaySampling, ScratchModel
    from cft_ray.training.model import create

    shape = ScratchModel(
        architecture="llama",
        hidden_size=640,
        layers=options.layers,
        heads=10,
        kv_heads=5,
        intermediate_size=1792,
        max_positions=MAX_LENGTH,
    )
    sampling = ReplaySampling(max_new_tokens=NEW_TOKENS[1], max_length=MAX_LENGTH)
    ray.init(address="local", num_cpus=options.threads + 1, object_store_memory=200 * 2**20, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        model = str(create(shape, 0, Path(folder)))
        prompts = questions(model, options.prompts)
        bare = bare_rates(model, prompts, sampling, options.repeats)
        ours = [our_rate(model, prompts, sampling, options.threads) for _ in range(options.repeats)]
        parameters = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) // 4
    ray.shutdown()
    figures = {
        "parameters": parameters,
        "prompts": options.prompts,
        "threads": options.threads,
        "bare_tokens_per_second": bare,
        "replay_tokens_per_second": ours,
        "share_of_bare": statistics.median(ours) / statistics.median(bare),
        "goal_share": 0.9,
    }
    command = f"python benchmarks/replay.py --prompts {options.prompts} --threads {options.threads} --repeats {options.repeats}"
    print(figures, record("replay", command, figures), sep="\n")


def questions(model: str, count: int) -> list[Any]:
    """Prompts of varied length, by a fixed seed."""
    from transformers import AutoTokenizer

    from cft_ray.data.encoding import Encoder
    from cft_ray.generation.requests import Prompt

    draw = random.Random(0)
    words = ["reverse", "the", "word", "number", "and", "write", "it", "twice", "in", "capitals"]
    texts = [" ".join(draw.choices(words, k=draw.randint(*PROMPT_WORDS))) + " =" for _ in range(count)]
    tokens = Encoder(AutoTokenizer.from_pretrained(model), None).texts(texts)
    return [Prompt(index, ids, draw.getrandbits(62), draw.randint(*NEW_TOKENS)) for index, ids in enumerate(tokens)]


def bare_rates(model: str, prompts: list[Any], sampling: Any, repeats: int) -> list[float]:
    """Generated tokens per second of `vllm.LLM.generate`, once warm."""
    from cft_ray.generation import engine
    from cft_ray.generation.settings import device, engine_arguments

    llm = engine.load(engine_arguments(model, dtype=sampling.dtype, max_length=sampling.max_length, seed=0, on=device()))
    from vllm import SamplingParams

    asked: Any = [{"prompt_token_ids": prompt.tokens} for prompt in prompts]
    parameters = [
        SamplingParams(temperature=sampling.temperature, top_p=sampling.top_p, seed=prompt.seed, max_tokens=prompt.new_tokens)
        for prompt in prompts
    ]
    llm.generate(asked[:32], SamplingParams(max_tokens=1), use_tqdm=False)
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        outputs = llm.generate(asked, parameters, use_tqdm=False)
        seconds = time.perf_counter() - start
        rates.append(sum(len(output.outputs[0].token_ids) for output in outputs) / seconds)
    del llm
    engine.unload()
    return rates


def our_rate(model: str, prompts: list[Any], sampling: Any, threads: int) -> float:
    """Generated tokens per second of the stage's generator, from the moment when its engine stands."""
    from cft_ray.generation.batches import answers
    from cft_ray.generation.settings import end_tokens
    from cft_ray.grid.settings import EngineSettings
    from cft_ray.plan.stage import Resources

    before, ready = engines(), threading.Event()
    started: list[float] = []

    def watch() -> None:
        while not ready.wait(0.05):
            if engines() - before:
                started.append(time.perf_counter())
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    needs = Resources(workers=1, cpus=threads)
    asked = answers(model, prompts, sampling, EngineSettings(), end_tokens(model, ()), needs)
    tokens = sum(answer.tokens for answer in asked)
    end = time.perf_counter()
    ready.set()
    watcher.join()
    return tokens / (end - started[0])


def engines() -> set[str]:
    """Ids of the actors that hold an engine and have been made. Ray's public state API needs the dashboard, this not."""
    from ray._private.state import actors

    found = actors(actor_state_name="ALIVE")
    return {key for key, actor in found.items() if "vLLMEngineStageUDF" in actor["ActorClassName"]}


if __name__ == "__main__":
    main()
