"""A causal language model loaded to be looked into: decoder, its blocks and the head apart, on this process's device.

transformers rather than vLLM, because hidden states are wanted, and plain rather than DeepSpeed, because nothing is
trained: one device holds the whole model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cft_ray.errors import UserError
from cft_ray.generation.settings import device, read_config


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on one device."""

    folder: str
    causal: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    positions: int | None
    """tokens that the model takes; None where its configuration does not say"""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.causal.device

    @property
    def decoder(self) -> Any:
        """Everything but the head: token ids to last hidden states."""
        return self.causal.get_decoder()

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder's blocks, first to last.

        Raises:
            UserError: the architecture keeps them in another way than those that are known.
        """
        count = self.causal.config.get_text_config().num_hidden_layers
        for child in self.decoder.children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return list(child)
        raise UserError(
            f"no list of {count} decoder blocks was found in {type(self.decoder).__name__}",
            where=self.folder,
            fix="use a decoder-only architecture of transformers (Mistral, Llama, Qwen, GPT-2 …)",
        )

    @property
    def head(self) -> Any:
        """The linear layer from last hidden states to logits."""
        return self.causal.get_output_embeddings()

    @property
    def pad_id(self) -> int:
        """A token id to fill room with; no real token sees it."""
        return next((each for each in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if isinstance(each, int)), 0)

    def limit(self, tokens: int) -> int:
        """``tokens``, or what the model takes if that is less."""
        return min(tokens, self.positions) if self.positions else tokens


def load(folder: str, dtype: str = "auto") -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        folder: local Hugging Face folder.
        dtype: of weights and activations; ``auto``: the checkpoint's on a GPU, float32 on a CPU.

    Raises:
        UserError: no such model, files that are broken, or weights that are missing from them.
    """
    on = device()
    config = read_config(folder)
    kind: Any = "float32" if dtype == "auto" and on == "cpu" else dtype
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=kind, attn_implementation="sdpa", local_files_only=True, output_loading_info=True
        )
        causal, found = loaded
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"transformers cannot load the model ({error})", where=folder, fix="check the folder's files") from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"the files lack weights of the model: {', '.join(missing[:5])}", where=folder, fix="fetch or train the model again"
        )
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return LoadedModel(folder, causal.to(on).eval(), tokenizer, positions)
