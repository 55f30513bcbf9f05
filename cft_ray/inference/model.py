"""A causal language model loaded to be looked into: decoder, its blocks and the head apart, on this process's device.

transformers rather than vLLM, because hidden states are wanted, and plain rather than DeepSpeed, because nothing is
trained: one device holds the whole model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cft_ray.errors import UserError
from cft_ray.generation.settings import device
from cft_ray.models import function, loading
from cft_ray.models.config import positions
from cft_ray.models.limits import within
from cft_ray.models.outputs import Outputs, outputs_of


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on one device."""

    folder: str
    causal: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    positions: int | None
    """tokens that the model takes; None where there is no limit"""
    outputs: Outputs
    """what it does to its head's output"""

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
        return within(self.positions, tokens)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """[positions, vocabulary] float32: the logits that it predicts by, from last hidden states [positions, hidden size]."""
        return self.outputs(logits(hidden, self.head))

    @torch.inference_mode()
    def check_head(self) -> None:
        """See that `scores` are the model's predictions.

        Raises:
            UserError: something else happens after the decoder.
        """
        probe = torch.arange(8, device=self.device)[None]
        hidden = self.decoder(input_ids=probe, use_cache=False).last_hidden_state[0]
        theirs = self.causal(input_ids=probe, use_cache=False).logits[0].float()
        if not torch.allclose(self.scores(hidden), theirs, rtol=0.02, atol=0.02):
            raise UserError(
                f"{type(self.causal).__name__} changes its head's output before it predicts, which is not supported here",
                where=self.folder,
                fix="leave the divergence and the quality of replay out for this model",
            )


def load(folder: str, dtype: str = "auto") -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        folder: local Hugging Face folder.
        dtype: of weights and activations; ``auto``: the checkpoint's on a GPU, float32 on a CPU.

    Raises:
        UserError: no such model, or one that is not what its files say (`cft_ray.models.loading.load`); predictions that are not
            finite.
    """
    on = device()
    causal = loading.load(folder, dtype="float32" if dtype == "auto" and on == "cpu" else dtype).eval()
    causal.to(on)  # type: ignore[arg-type]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"transformers cannot load the tokenizer ({error})", where=folder, fix="check the folder's files"
        ) from error
    function.settle(causal, folder)
    return LoadedModel(folder, causal, tokenizer, positions(causal.config), outputs_of(causal.config))


def logits(hidden: torch.Tensor, head: Any) -> torch.Tensor:
    """What a head gives, [positions, vocabulary] float32.

    A GPU does not round half-precision products: a bfloat16 logit is off by up to 0.4 %.

    Args:
        hidden: [positions, hidden size].
        head: a linear layer.
    """
    weight, bias = head.weight, getattr(head, "bias", None)
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        product = torch.mm(hidden, weight.T, out_dtype=torch.float32)
        return product if bias is None else product.add_(bias)
    return nn.functional.linear(hidden, weight, bias).float()
