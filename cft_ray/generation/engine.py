"""One vLLM engine in the process, kept between stages.

A fresh process takes ten to twenty seconds to import vLLM and half a second to start the engine of a tiny model. So the
process holds the last engine: asked for the same model with the same settings, it gives it again; asked for a model that
differs in nothing but its weights (`likeness`), it loads these into the engine; asked for another, it unloads the first, so
that no two models are in memory.
"""

import gc
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft_ray.errors import UserError
from cft_ray.generation.likeness import likeness
from cft_ray.generation.settings import prepare_environment

if TYPE_CHECKING:
    from vllm import LLM


@dataclass
class _Held:
    arguments: dict[str, Any]
    content: list[tuple[str, int, int]]
    likeness: str | None
    engine: "LLM"


_held: _Held | None = None
_READING = frozenset({"create_model_config", "load_model", "get_tokenizer"})
"""Functions in which vLLM reads a folder: what is raised there, of whichever type (assertions and `KeyError` among them), is
said of the folder; anything else, such as too little memory for the cache, is no fault of the model."""


def load(arguments: dict[str, Any]) -> "LLM":
    """The engine with these arguments; it stays loaded until another is asked for, or `unload`.

    An engine that is given again, or with other weights, is the same object: whoever had it before must be done with it.

    Args:
        arguments: of `cft_ray.generation.settings.engine_arguments`.

    Raises:
        UserError: vLLM cannot load the model.
    """
    global _held
    model = arguments["model"]
    content = _content(model)
    if _held is not None and _held.arguments == arguments and _held.content == content:
        return _held.engine
    alike = likeness(model)
    if _held is not None and alike is not None and alike == _held.likeness and {**_held.arguments, "model": model} == arguments:
        held, _held = _held, None
        try:
            _reload(held.engine, model)
        except Exception:  # noqa: BLE001  whatever is wrong with the weights, a fresh engine loads them or says it
            _end(held.engine)
        else:
            _held = _Held(arguments, content, alike, held.engine)
            return _held.engine
    unload()
    prepare_environment()
    _held = _Held(arguments, content, alike, _start(arguments))
    return _held.engine


def unload() -> None:
    """Free the engine that is held, if any: its weights, its cache and vLLM's process groups."""
    global _held
    if _held is not None:
        held, _held = _held, None
        _end(held.engine)


def _start(arguments: dict[str, Any]) -> "LLM":
    import torch
    from torch import OutOfMemoryError
    from vllm import LLM

    if arguments.get("enforce_eager"):  # some of vLLM's functions ask for compilation all the same: a minute for log-likelihoods
        torch.compiler.set_stance("force_eager")
    try:
        return LLM(**arguments)
    except OutOfMemoryError:
        raise
    except Exception as error:
        if _READING.isdisjoint(frame.name for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise UserError(
            f"vLLM cannot load the model ({str(error) or type(error).__name__})",
            where=arguments["model"],
            fix="check the folder's files, or evaluate with backend: hf",
        ) from error


def _reload(engine: "LLM", model: str) -> None:
    """Other weights for an engine that has no request."""
    engine.collective_rpc("reload_weights", kwargs={"weights_path": model})
    engine.reset_prefix_cache()


def _end(engine: "LLM") -> None:
    from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

    engine.llm_engine.engine_core.shutdown()
    del engine
    destroy_model_parallel()
    destroy_distributed_environment()
    gc.unfreeze()  # vLLM froze what was there when it had started, itself included
    gc.collect()  # the engine is full of cycles
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _content(model: str) -> list[tuple[str, int, int]]:
    """Name, bytes and time of a folder's files, so that a model written anew at the same path is loaded anew."""
    files = sorted(path for path in Path(model).iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
