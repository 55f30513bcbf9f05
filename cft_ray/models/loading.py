"""The one place that loads a causal language model: whole, by plain transformers, and compared with its files.

Plain, because loading under `deepspeed.zero.Init` has its own faults: it rounds buffers that a constructor computes
(rotary frequencies become bfloat16), applies no conversion of renamed weights, and has silently initialised weights
anew (transformers#45313). A model that is to be partitioned is partitioned afterwards (`partition` in
`cft_ray.training.engine`), which sends the weights from rank 0 to the others, so only rank 0 has to read them.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cft_ray.errors import UserError
from cft_ray.models.config import read_config
from cft_ray.models.limits import check_vocabulary, in_folder, limits_of
from cft_ray.models.stored import stored_tensors
from cft_ray.models.weights import check_weights


def load(folder: str, *, dtype: torch.dtype | str) -> PreTrainedModel:
    """Load a causal language model on the CPU.

    Args:
        folder: Hugging Face folder.
        dtype: of the weights; ``auto``: the files'.

    Raises:
        UserError: no model there, files that are broken or do not hold this model's weights, a tokenizer that is larger.
    """
    config = read_config(folder)
    check_vocabulary(limits_of(in_folder(folder)), where=folder)
    files = {tensor.name: tensor.file for tensor in stored_tensors(Path(folder))}
    tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))  # loading may change it
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise UserError(f"transformers cannot load the model ({error})", where=folder, fix="check the folder's files") from error
    model, info = loaded
    check_weights(model, info, files, Path(folder), tied=tied)
    return model


def skeleton(folder: str, *, dtype: torch.dtype) -> PreTrainedModel:
    """The same model with room for its weights instead of weights: for ranks that get them from rank 0.

    Args:
        folder: Hugging Face folder.
        dtype: of the weights.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_config(folder), dtype=dtype)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    return model
