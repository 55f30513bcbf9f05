"""Tiny models on disk: one with sharp random weights, and one that is built to answer a fixed word."""

from pathlib import Path

import pytest
from tinymodels import sharpened, weights_of

from cft_ray.grid.settings import ScratchModel

SHAPE = ScratchModel(layers=2, hidden_size=128, heads=4, kv_heads=2, intermediate_size=128, max_positions=256)


def plant(folder: Path, word: str) -> Path:
    """Write a model that answers ``word`` (no letter twice) to every prompt that does not end in one of its letters.

    Attention and MLP add nothing, so the next token is a function of the last: anything else -> first letter -> … ->
    end of sequence.
    """
    import torch
    from transformers import AutoTokenizer

    from cft_ray.training.model import create

    tokenizer = AutoTokenizer.from_pretrained(create(SHAPE, 0, folder))
    letters = tokenizer(word, add_special_tokens=False).input_ids
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


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Answers MARK."""
    return str(plant(tmp_path_factory.mktemp("planted"), "MARK"))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """See `sharpened`."""
    return sharpened(tmp_path_factory.mktemp("random"), SHAPE, 1)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Other random weights of the same shape, as they were drawn."""
    from cft_ray.training.model import create

    return str(create(SHAPE, 7, tmp_path_factory.mktemp("other")))
