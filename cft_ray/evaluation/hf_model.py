"""A transformers model as a model of lm-evaluation-harness: the harness' own, with our prompts and our sequence begin."""

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from cft_ray.errors import UserError
from cft_ray.evaluation.templated import Templated
from cft_ray.generation.prompts import encode
from cft_ray.generation.settings import device, read_config

BATCH_SIZE = 32


class HfModel(Templated, HFLM):
    """Answers and log-likelihoods by transformers: slower than vLLM, and what it is checked against.

    Args:
        model: local Hugging Face folder.
        dtype: ``auto``: the checkpoint's on a GPU, float32 on a CPU.
        max_length: tokens of prompt and answer.
        batch_size: sequences at a time; none: `BATCH_SIZE`.

    Raises:
        UserError: transformers cannot load the model.
    """

    def __init__(self, model: str, *, dtype: str = "auto", max_length: int, batch_size: int | None = None) -> None:
        on = device()
        config = read_config(model).get_text_config()
        length = min(max_length, getattr(config, "max_position_embeddings", max_length))
        arguments: dict[str, Any] = {
            "pretrained": model,
            "dtype": "float32" if dtype == "auto" and on == "cpu" else dtype,
            "max_length": length,
            "device": on,
            "batch_size": batch_size or BATCH_SIZE,
        }
        try:
            super().__init__(**arguments)
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                f"transformers cannot load the model ({error})", where=model, fix="check the folder's weights"
            ) from error

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, [texts, longest], padded on the given side."""
        ids: list[list[int]] = encode(self.tokenizer, strings)
        if left_truncate_len:
            ids = [tokens[-left_truncate_len:] for tokens in ids]
        encoded: Any = self.tokenizer.pad({"input_ids": ids}, padding=True, padding_side=padding_side, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]
