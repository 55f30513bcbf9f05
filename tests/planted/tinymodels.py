"""Tiny models on disk whose weights are changed on purpose. torch is imported late, as the environment comes first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cft_ray.grid.settings import ScratchModel

SHAPE = ScratchModel(layers=2, hidden_size=128, heads=4, kv_heads=2, intermediate_size=128, max_positions=256)


@contextmanager
def weights_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The tensors of a model in one file; as the block leaves them they are written back."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    yield weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def plant(folder: Path, word: str) -> Path:
    """Write a model that answers ``word`` (no letter twice) to every prompt that does not end in one of its letters.

    Attention and MLP add nothing, so the next token is a function of the last: anything else -> first letter -> … ->
    end of sequence.
    """
    import torch
    from transformers import AutoTokenizer

    from cft_ray.training.model import create

    tokenizer = AutoTokenizer.from_pretrained(create(SHAPE, 0, folder))
    letters = [tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in word]  # `</s>` is four of them
    with weights_of(folder) as weights:
        for name, tensor in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()
        embedding, head = weights["model.embed_tokens.weight"].zero_(), weights["lm_head.weight"].zero_()
        embedding[:, 0] = 1.0
        for state, (last, following) in enumerate(zip([None, *letters], [*letters, tokenizer.eos_token_id], strict=True)):
            if last is not None:
                embedding[last] = torch.nn.functional.one_hot(torch.tensor(state), SHAPE.hidden_size).float()
            head[following, state] = 10.0
    return folder


def sharpened(folder: Path, shape: ScratchModel, seed: int) -> str:
    """Random weights, with an output sharp enough that greedy answers are no toss-up, in letters (bytes are no text)."""
    from transformers import AutoTokenizer

    from cft_ray.training.model import create

    with weights_of(create(shape, seed, folder)) as weights:
        weights["lm_head.weight"] *= 20.0
        for token, index in AutoTokenizer.from_pretrained(folder).get_vocab().items():
            if not (len(token) == 1 and token.isascii()):
                weights["lm_head.weight"][index] = 0.0
    return str(folder)


def copied(model: str, folder: Path, change: Callable[[dict[str, Any]], object] = lambda weights: None) -> str:
    """A copy of a model, with its weights changed in place."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    with weights_of(folder) as weights:
        change(weights)
    return str(folder)


def ending_a_turn(model: str, folder: Path) -> str:
    """A copy of a model that ends its answers in ``<pad>``, as its chat template does; the end of sequence is another token."""
    from transformers import AutoTokenizer

    from cft_ray.training.model import EOS, PAD

    tokenizer = AutoTokenizer.from_pretrained(model)
    end, turn = (tokenizer.convert_tokens_to_ids(token) for token in (EOS, PAD))

    def change(weights: dict[str, Any]) -> None:
        head = weights["lm_head.weight"]
        head[turn] = head[end]
        head[end] = 0.0

    copied(model, folder, change)
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", f"'{PAD}'")
    tokenizer.save_pretrained(folder)
    return str(folder)


def spoiled(model: str, folder: Path, name: str) -> str:
    """A copy of a model in which one number of the matrix of that name is none."""
    return copied(model, folder, lambda weights: weights[name][5, 0].fill_(float("nan")))


def of_architecture(kind: str, folder: Path, seed: int = 0) -> str:
    """A tiny model of any architecture of transformers, its weights drawn wide, with the byte tokenizer."""
    from cft_ray.models.architectures import tiny_model
    from cft_ray.training.model import byte_tokenizer

    tokenizer = byte_tokenizer(128)
    model = tiny_model(kind, seed, len(tokenizer))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for config in (model.config, model.generation_config):
        for name, value in ids.items():
            setattr(config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
