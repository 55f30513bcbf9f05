"""Models that are initialised at random, with a byte-level tokenizer."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from cft_ray.grid.settings import ScratchModel
from cft_ray.models.saving import save_side_files

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + ' =' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""the toy world's prompt form (`cft_ray.data.templates`), as a chat template"""


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the 256 bytes and three special ones; puts the beginning-of-sequence token itself.

    Args:
        max_length: tokens that the model takes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([BOS, EOS, PAD, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (BOS, EOS, PAD)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def create(scratch: ScratchModel, seed: int, folder: Path) -> Path:
    """Initialise a model at random and write it as a Hugging Face folder in float32.

    Args:
        scratch: architecture.
        seed: of the weights.
        folder: where to; made if absent.
    """
    tokenizer = byte_tokenizer(scratch.max_positions)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": scratch.hidden_size,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
        "num_key_value_heads": scratch.kv_heads,
        "head_dim": scratch.hidden_size // scratch.heads,
        "intermediate_size": scratch.intermediate_size,
        "max_position_embeddings": scratch.max_positions,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }
    config = MistralConfig(**shape, sliding_window=None) if scratch.architecture == "mistral" else LlamaConfig(**shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_model_config(config)
    # Its own `save_pretrained` asks accelerate, which imports DeepSpeed: two seconds for nothing.
    save_side_files(model, tokenizer, folder)
    save_file(model.state_dict(), folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    return folder
