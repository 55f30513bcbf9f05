"""A model behind the harness, by the backend that a spec names."""

from typing import TYPE_CHECKING, Any, cast

from cft_ray.generation import engine
from cft_ray.generation.settings import prepare_environment, shared_arguments
from cft_ray.grid.settings import GenerationSettings
from cft_ray.plan.specs import EvaluateSpec

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def load_model(folder: str, spec: EvaluateSpec, gpus: float = 1) -> "LM":
    """The model of a local Hugging Face folder, ready for the harness.

    With vLLM the process keeps the engine, and gives it again for the same folder and settings.

    Args:
        folder: of the model.
        spec: backend, dtype, length, and the engine's batch and memory.
        gpus: GPUs to split it over, where there are any; of less than one it takes its share.

    Raises:
        UserError: it cannot be loaded.
    """
    prepare_environment()
    settings: GenerationSettings = spec.generation
    if spec.backend == "hf":
        from cft_ray.evaluation.hf_model import HfModel

        engine.unload()
        # The harness' decorator hides from type checkers that its class is whole.
        return cast(Any, HfModel)(folder, dtype=settings.dtype, max_length=settings.max_length, batch_size=spec.engine.sequences)
    loaded = engine.load(shared_arguments(folder, settings, spec.engine, gpus))
    from cft_ray.evaluation.vllm_model import VllmModel

    return VllmModel(loaded, settings.max_length, seed=spec.seed)
