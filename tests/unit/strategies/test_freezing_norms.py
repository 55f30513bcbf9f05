"""What LF_H2 freezes, from norms written by hand, in a model whose layers' base weights are on different scales."""

from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from cft_ray.strategies import build

LAYERS = 3
CHANGE = {0: 9.0, 1: 4.0, 2: 1.0}
BASE = {0: 90.0, 1: 8.0, 2: 10.0}
"""The most changed layer is 0 as it is (9), and 1 by its base (4 / 8)."""


@pytest.fixture
def drift(tmp_path):
    rows = [
        {"projection": p, "head": h, "layer": n, "l2": CHANGE[n], "l2_right": BASE[n]}
        for p, heads in {"q": 4, "k": 2, "v": 2}.items()
        for h in range(heads)
        for n in range(LAYERS)
    ]
    pl.DataFrame(rows, schema_overrides={"head": pl.Int32}).write_parquet(tmp_path / "heads.parquet")
    layers = [{"layer": n, "l2": CHANGE[n], "l2_right": BASE[n]} for n in range(LAYERS)]
    pl.DataFrame(layers).write_parquet(tmp_path / "tensors.parquet")
    return tmp_path


def model(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=32,
        **changes,
    )
    return AutoModelForCausalLM.from_config(config)


def frozen(drift, **settings: Any) -> tuple[Any, set[int]]:
    """The model after a backward pass, and the layers whose query weights get no gradient."""
    made: Any = build("LF_H2", {"layers": 1, **settings}).prepare(model(attention_bias=True), {"drift": drift}, 0)
    made(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    still = {n for n in range(LAYERS) if not moved(made.model.layers[n].self_attn.q_proj.weight).any()}
    return made, still


def moved(parameter: torch.Tensor) -> torch.Tensor:
    """Rows with a gradient."""
    if parameter.grad is None:
        return torch.zeros(len(parameter), dtype=torch.bool)
    return parameter.grad.view(len(parameter), -1).abs().sum(1) > 0


@pytest.mark.parametrize("granularity", ["head", "projection", "block"])
@pytest.mark.parametrize(("norm", "layer"), [("absolute", 0), ("relative", 1)])
def test_the_norm_decides_which_layer_is_frozen(drift, granularity, norm, layer):
    assert frozen(drift, granularity=granularity, norm=norm)[1] == {layer}


def test_biases_freeze_with_their_rows(drift):
    made, still = frozen(drift)
    assert still == {0}
    for n in range(LAYERS):
        attention = made.model.layers[n].self_attn
        for part in (attention.q_proj, attention.v_proj):  # a key bias shifts all scores of a query alike: it has no gradient
            assert moved(part.weight).any() == moved(part.bias).any() == (n not in still)
