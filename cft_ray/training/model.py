"""Models: initialised at random with a byte-level tokenizer, or loaded under ZeRO-3 and compared with their files."""

from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero import GatheredParameters
from safetensors import safe_open
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from cft_ray.errors import StageFailed, UserError
from cft_ray.grid.settings import ScratchModel

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
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: str, *, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """Load a causal language model; partitioned if an `HfDeepSpeedConfig` of stage 3 is alive.

    Args:
        folder: Hugging Face folder.
        dtype: of the weights that compute.
        attention: transformers' name of the attention implementation.

    Raises:
        UserError: no model there.
        StageFailed: what was loaded is not what the files hold.
    """
    try:
        AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Hugging Face model ({error})", where=folder, fix="name a folder with config.json and weights"
        ) from error
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention, local_files_only=True)
    _compare(model, Path(folder))
    return model


def _compare(model: PreTrainedModel, folder: Path) -> None:
    """Every weight against its file: loading under ZeRO-3 has silently re-initialised some (transformers#45313)."""
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            files |= dict.fromkeys(weights.keys(), path)
    if not files:
        return  # weights in another format: transformers has read them, there is nothing cheap to compare with
    wrong: list[str] = []
    leader = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    for name, parameter in model.named_parameters():
        with GatheredParameters([parameter]):
            if not leader:
                continue
            if name not in files:
                wrong.append(name)
                continue
            with safe_open(files[name], framework="pt") as weights:
                expected = weights.get_tensor(name).to(parameter.dtype)
            if expected.shape != parameter.shape or not torch.equal(expected, parameter.detach().cpu()):
                wrong.append(name)
    outcome: list[Any] = [wrong]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[0]:
        raise StageFailed(f"{folder}: loaded weights differ from their files: {', '.join(outcome[0][:5])} …")
