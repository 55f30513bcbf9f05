"""Answers of one model to many prompts by several engines: Ray Data and vLLM, through `ray.data.llm`.

The prompts come as tokens, each with the seed of its own random numbers, so that an answer depends on the model, the
prompt and that seed, not on what it was batched with. Answers come as they are finished, in no order. What the engine
needs to hear is in `cft_ray.generation.settings`; the sizes here keep it fed: throughput is flat as long as
``BATCH_SIZE`` times ``CONCURRENT_BATCHES`` is a few times the sequences that it runs at once.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from cft_ray.generation.requests import Answer, Prompt, parameters
from cft_ray.generation.settings import engine_arguments, environment
from cft_ray.grid.settings import EngineSettings, ReplaySampling
from cft_ray.machine import devices_for
from cft_ray.plan.stage import Resources

BATCH_SIZE = 32
CONCURRENT_BATCHES = 16
LIGHT = 0.1
"""Share of the engines' CPUs for what Ray Data does beside them: without it, engines that hold all CPUs wait for a conversion
that waits for a CPU."""


def answers(
    model: str,
    prompts: Sequence[Prompt],
    sampling: ReplaySampling,
    limits: EngineSettings,
    ends: Sequence[int],
    resources: Resources,
) -> Iterator[Answer]:
    """Ask ``model`` all prompts; inside a running Ray.

    Args:
        model: local Hugging Face folder, on every node that works.
        prompts: what to ask, at least one.
        sampling: temperature, nucleus, length and dtype.
        limits: of an engine's batch and memory.
        ends: ids at which an answer ends.
        resources: ``workers`` engines, each with ``cpus`` CPUs and ``gpus`` GPUs (tensor parallelism).

    Raises:
        UserError: the folder is no model.
    """
    import pyarrow as pa
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    data = ray.data.DataContext.get_current()
    data.enable_progress_bars = False
    data.print_on_execution_start = False
    data.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    gpus = int(resources.gpus)
    arguments = engine_arguments(
        model,
        dtype=sampling.dtype,
        max_length=sampling.max_length,
        seed=0,
        sequences=limits.sequences,
        batch_tokens=limits.batch_tokens,
        gpu_memory=limits.gpu_memory,
        on="cuda" if gpus else "cpu",
        gpus=max(gpus, 1),
    )
    arguments.pop("model")
    bundle = {"CPU": resources.cpus * (1 - LIGHT)} | ({"GPU": 1} if gpus else {})
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=arguments,
        batch_size=BATCH_SIZE,
        max_concurrent_batches=CONCURRENT_BATCHES,
        concurrency=(1, resources.workers),
        placement_group_config={"bundles": [bundle] + [{"GPU": 1}] * (gpus - 1)},
        runtime_env={"env_vars": {**environment(), **devices_for(gpus), "OMP_NUM_THREADS": str(max(int(resources.cpus), 1))}},
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "tokenized_prompt": row["tokens"],
            "sampling_params": parameters(sampling, int(row["seed"]), int(row["new_tokens"]), ends),
        }

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        tokens = row["generated_tokens"]
        ended = len(tokens) > 0 and int(tokens[-1]) in ends
        return {
            "index": row["index"],
            "text": row["generated_text"],
            "tokens": len(tokens),
            "finish_reason": "stop" if ended else "length",
        }

    light = {"num_cpus": LIGHT * min(resources.cpus, 1) / 4}  # of two conversions, each with room for two at a time
    processor = build_processor(
        config, preprocess=ask, postprocess=answer, preprocess_map_kwargs=light, postprocess_map_kwargs=light
    )
    table = pa.table({name: [getattr(prompt, name) for prompt in prompts] for name in ("index", "tokens", "seed", "new_tokens")})
    blocks = [table.slice(start, BATCH_SIZE) for start in range(0, table.num_rows, BATCH_SIZE)]
    for row in processor(ray.data.from_arrow(blocks)).iter_rows():
        yield Answer(int(row["index"]), str(row["text"]), int(row["tokens"]), str(row["finish_reason"]))
