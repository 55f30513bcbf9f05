"""Tiny models on disk: one with sharp random weights, and one that is built to answer a fixed word."""

from pathlib import Path

import pytest

from cft_ray.grid.settings import ScratchModel

SHAPE = ScratchModel(layers=2, hidden_size=128, heads=4, kv_heads=2, intermediate_size=128, max_positions=256)


def plant(folder: Path, word: str) -> Path:
    """Write a model that answers ``word`` (no letter twice) to every prompt that does not end in one of its letters.

    Attention and MLP add nothing, so the next token is a function of the last: anything else -> first letter -> … ->
    end of sequence.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    from cft_ray.training.model import create

    create(SHAPE, 0, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    letters = tokenizer(word, add_special_tokens=False).input_ids
    embedding, head = weights["model.embed_tokens.weight"].zero_(), weights["lm_head.weight"].zero_()
    embedding[:, 0] = 1.0
    for state, (last, following) in enumerate(zip([None, *letters], [*letters, tokenizer.eos_token_id], strict=True)):
        if last is not None:
            embedding[last] = torch.nn.functional.one_hot(torch.tensor(state), SHAPE.hidden_size).float()
        head[following, state] = 10.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Answers MARK."""
    return str(plant(tmp_path_factory.mktemp("planted"), "MARK"))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, with an output sharp enough that greedy answers are no toss-up, in letters (bytes are no text)."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    from cft_ray.training.model import create

    folder = create(SHAPE, 1, tmp_path_factory.mktemp("random"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 20.0
    for token, index in AutoTokenizer.from_pretrained(folder).get_vocab().items():
        if not (len(token) == 1 and token.isascii()):
            weights["lm_head.weight"][index] = 0.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)
