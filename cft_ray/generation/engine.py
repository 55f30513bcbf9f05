"""One vLLM engine in the process, kept between stages while the next stage asks the same model.

A worker process that has imported vLLM starts an engine for a tiny model in about a second, where a fresh process takes
ten. So the process holds the last engine: asked for the same model with the same settings, it gives it again; asked for
another, it unloads the first, so that no two models are in memory.
"""

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft_ray.errors import UserError
from cft_ray.generation.settings import prepare_environment

if TYPE_CHECKING:
    from vllm import LLM

_held: "tuple[str, LLM] | None" = None


def load(arguments: dict[str, Any]) -> "LLM":
    """The engine with these arguments; it stays loaded until another is asked for, or `unload`.

    Args:
        arguments: of `cft_ray.generation.settings.engine_arguments`.

    Raises:
        UserError: vLLM cannot load the model.
    """
    global _held
    key = json.dumps([arguments, _content(arguments["model"])], sort_keys=True)
    if _held is not None and _held[0] == key:
        return _held[1]
    unload()
    prepare_environment()
    from torch import OutOfMemoryError
    from vllm import LLM

    try:
        engine = LLM(**arguments)
    except OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"vLLM cannot load the model ({error})",
            where=arguments["model"],
            fix="check the folder's weights, or evaluate with backend: hf",
        ) from error
    _held = key, engine
    return engine


def unload() -> None:
    """Free the engine that is held, if any: its weights, its cache and vLLM's process groups."""
    global _held
    if _held is None:
        return
    from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

    engine, _held = _held[1], None
    engine.llm_engine.engine_core.shutdown()
    del engine
    destroy_model_parallel()
    destroy_distributed_environment()
    gc.collect()  # the engine is full of cycles
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _content(model: str) -> list[tuple[str, int, int]]:
    """Name, bytes and time of a folder's files, so that a model written anew at the same path is loaded anew."""
    files = sorted(path for path in Path(model).iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
