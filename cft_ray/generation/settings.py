"""Everything that vLLM is told, by device: the environment of its process and the engine's arguments.

The one place for both, so that evaluation and replay ask a model in the same way. On a CPU the settings are for tiny
models and a quick start: no compilation, a small key-value cache, float32. bfloat16 is never chosen on a CPU by itself,
because machines with AMX kill a process that uses it without the kernel's permission.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal

from cft_ray.grid.settings import EngineSettings, GenerationSettings, JudgeSettings, ReplaySampling, engine_length
from cft_ray.models.config import positions, read_config
from cft_ray.models.limits import within

Device = Literal["cuda", "cpu"]

ENVIRONMENT: dict[str, str] = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # `vllm.LLM` keeps its engine in the process: one import, one start
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_RAISE_ON_LOGIT_NANS": "1",  # a broken model's answers would be scored like a weak one's
    "TOKENIZERS_PARALLELISM": "false",  # a forked tokenizer that has used threads warns, and may hang
    "TQDM_DISABLE": "1",  # progress goes through the stage's context
}
"""Of every process that imports vLLM; see `environment`."""

ENGINE_SEED = 0
"""Of the engine that a process keeps; answers are seeded one by one, so that seeds share an engine."""
CPU_SEQUENCES = 128
"""Sequences that a CPU engine runs at a time."""
CPU_BATCH_TOKENS = 4096
"""Tokens that a CPU engine reads at a time; at least the longest prompt."""
_CACHE_BYTES = (2**26, 2**32)
"""Least and most key-value cache of a CPU engine."""
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def device() -> Device:
    """``cuda`` where this process sees a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def environment() -> dict[str, str]:
    """`ENVIRONMENT`; what the user has set stays as it is."""
    return {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}


def prepare_environment() -> None:
    """Set `environment` in this process; to be called before vLLM is imported."""
    os.environ.update(environment())


def end_tokens(model: str, taught: Sequence[int]) -> tuple[int, ...]:
    """Ids at which an answer ends, whichever engine gives it.

    Those that are taught (`cft_ray.data.encoding.Encoder.ends`), and those that the model's own ``generation_config.json``
    names, which vLLM obeys in any case. A model that was trained here names exactly what it was taught.

    Args:
        model: local Hugging Face folder.
        taught: ids.
    """
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # a model without generation_config.json
        named = None
    return tuple(dict.fromkeys((*taught, *([named] if isinstance(named, int) else named or ()))))


def shared_arguments(
    model: str, asked: ReplaySampling | GenerationSettings | JudgeSettings, limits: EngineSettings, gpus: float
) -> dict[str, Any]:
    """`engine_arguments` of the engine that this process keeps: stages share it only where they are told alike.

    Args:
        model: local Hugging Face folder.
        asked: whose dtype and length count.
        limits: of the engine's batch and memory.
        gpus: that the model is split over, where there are any; 0: this machine's one device.

    Raises:
        UserError: the folder is no model that transformers knows.
    """
    return engine_arguments(
        model,
        dtype=asked.dtype,
        max_length=asked.max_length,
        seed=ENGINE_SEED,
        on=device(),
        gpus=gpus or 1,
        sequences=limits.sequences,
        batch_tokens=limits.batch_tokens,
        gpu_memory=limits.gpu_memory,
    )


def engine_arguments(
    model: str,
    *,
    dtype: str,
    max_length: int,
    seed: int,
    on: Device,
    gpus: float = 1,
    sequences: int | None = None,
    batch_tokens: int | None = None,
    gpu_memory: float = 0.9,
) -> dict[str, Any]:
    """Arguments of `vllm.LLM` and `vllm.AsyncEngineArgs`.

    Args:
        model: local Hugging Face folder.
        dtype: of weights and activations; ``auto``: the checkpoint's on a GPU, float32 on a CPU.
        max_length: tokens of prompt and answer together that there must be room for (`engine_length`), or the model's own limit,
            if lower.
        seed: of the engine; sampling is seeded per request.
        on: device.
        gpus: GPUs that the model is split over (tensor parallelism); of less than one it takes its share of the memory.
        sequences: run at a time; none: vLLM's own choice on a GPU, `CPU_SEQUENCES` on a CPU.
        batch_tokens: read at a time; none: vLLM's own choice on a GPU, `CPU_BATCH_TOKENS` on a CPU.
        gpu_memory: share of a GPU's memory to take.

    Raises:
        UserError: the folder is no model that transformers knows.
    """
    config = read_config(model).get_text_config()
    length = within(positions(config), engine_length(max_length))
    arguments: dict[str, Any] = {
        "model": model,
        "max_model_len": length,
        "seed": seed,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        # A cached prefix is computed in other batches than a fresh one, so answers would depend on what was asked before.
        "enable_prefix_caching": False,
    }
    if on == "cuda":
        limits = {"max_num_seqs": sequences, "max_num_batched_tokens": batch_tokens}
        return {
            **arguments,
            **{name: limit for name, limit in limits.items() if limit is not None},
            "dtype": dtype,
            "tensor_parallel_size": max(int(gpus), 1),
            "gpu_memory_utilization": gpu_memory * min(gpus or 1, 1),
        }
    sequences = sequences or CPU_SEQUENCES
    dtype = "float32" if dtype == "auto" else dtype
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head_dim * _BYTES[dtype]
    least, most = _CACHE_BYTES
    return {
        **arguments,
        "dtype": dtype,
        "enforce_eager": True,
        # A prompt read in two parts makes vLLM take back a seeded request's random draw, which a CPU generator cannot.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(length, batch_tokens or CPU_BATCH_TOKENS),
        "max_num_seqs": sequences,
        "kv_cache_memory_bytes": min(max(token_bytes * length * sequences, least), most),
    }
