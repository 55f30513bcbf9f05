"""What is frozen, what is said of it, and that it gets no gradient: counted by hand in a small model."""

from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from cft_ray.errors import UserError
from cft_ray.strategies import build
from cft_ray.strategies.frozen import fractions, freeze_blocks, freeze_heads, frozen_facts, frozen_rows, layer_count
from cft_ray.strategies.selection import select

LAYERS, WIDTH, HEADS, SHARED, SIZE, INNER, VOCABULARY = 3, 64, 4, 2, 16, 32, 40
BLOCK = 2 * WIDTH * WIDTH + 2 * SHARED * SIZE * WIDTH + 3 * INNER * WIDTH + 2 * WIDTH
WHOLE = LAYERS * BLOCK + 2 * VOCABULARY * WIDTH + WIDTH


def model(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        intermediate_size=INNER,
        vocab_size=VOCABULARY,
        **changes,
    )
    return AutoModelForCausalLM.from_config(config)


def gradients(made: Any) -> dict[str, torch.Tensor]:
    ids = torch.arange(VOCABULARY)[None]
    made(input_ids=ids, labels=ids).loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in made.named_parameters()}


def test_blocks_are_counted_and_frozen_whole():
    made = model()
    assert layer_count(made) == LAYERS
    assert frozen_facts(made) == {"frozen_fraction": 0, "trainable_fraction": 1, "frozen_blocks": [], "frozen_heads": {}}
    freeze_blocks(made, [0, 2])
    facts = frozen_facts(made)
    assert facts["frozen_blocks"] == [0, 2] and facts["frozen_heads"] == {}
    assert facts["frozen_fraction"] == pytest.approx(2 * BLOCK / WHOLE)
    assert facts["trainable_fraction"] == pytest.approx(1 - 2 * BLOCK / WHOLE)
    assert {name for name, gradient in gradients(made).items() if not gradient.any()} == {
        name for name, _ in made.named_parameters() if ".layers.0." in name or ".layers.2." in name
    }


def test_heads_are_frozen_by_their_rows():
    """Query heads 1, 2 and 3 of layer 0 (two of them touch), key head 0 of layer 2, and all value heads of layer 1."""
    made = model()
    chosen = {("q", 0, 1), ("q", 0, 2), ("q", 0, 3), ("k", 2, 0), ("v", 1, 0), ("v", 1, 1)}
    freeze_heads(made, lambda part: (part.projection, part.layer, part.head) in chosen)
    attention = [layer.self_attn for layer in made.model.layers]
    assert frozen_rows(attention[0].q_proj.weight) == ((SIZE, 4 * SIZE),)
    assert frozen_rows(attention[2].k_proj.weight) == ((0, SIZE),)
    assert frozen_rows(attention[1].v_proj.weight) == ((0, 2 * SIZE),) and not attention[1].v_proj.weight.requires_grad
    assert frozen_rows(attention[1].q_proj.weight) == () and frozen_rows(made.lm_head.weight) == ()
    facts = frozen_facts(made)
    assert facts["frozen_heads"] == {"q": {"1": [0], "2": [0], "3": [0]}, "v": {"0": [1], "1": [1]}, "k": {"0": [2]}}
    assert facts["frozen_blocks"] == []
    assert facts["frozen_fraction"] == pytest.approx(len(chosen) * SIZE * WIDTH / WHOLE)
    assert facts["frozen_fraction"] + facts["trainable_fraction"] == pytest.approx(1)
    found, free = gradients(made), gradients(model())
    for name, gradient in found.items():
        kept = torch.ones(len(gradient), dtype=torch.bool)
        for projection, layer, head in chosen:
            if f".layers.{layer}.self_attn.{projection}_proj." in name:
                kept[head * SIZE : (head + 1) * SIZE] = False
        assert not gradient[~kept].any() and torch.equal(gradient[kept], free[name][kept]), name


def test_heads_that_do_not_touch_are_two_ranges_and_heads_of_a_frozen_block_are_named_once():
    made = model()
    freeze_heads(made, lambda part: part.projection == "q" and part.head in {0, 2})
    assert frozen_rows(made.model.layers[1].self_attn.q_proj.weight) == ((0, SIZE), (2 * SIZE, 3 * SIZE))
    freeze_blocks(made, {1})
    facts = frozen_facts(made)
    assert facts["frozen_blocks"] == [1]
    assert facts["frozen_heads"] == {"q": {"0": [0, 2], "2": [0, 2]}}


def test_tied_weights_are_counted_once():
    made = model(tie_word_embeddings=True)
    freeze_blocks(made, {0})
    assert fractions(made)["frozen_fraction"] == pytest.approx(BLOCK / (WHOLE - VOCABULARY * WIDTH))


def test_a_model_without_blocks_or_known_heads_is_refused():
    with pytest.raises(UserError, match="no numbered decoder blocks"):
        layer_count(torch.nn.Linear(2, 2))
    fused = AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40))
    assert layer_count(fused) == 2
    with pytest.raises(UserError, match="GPT2LMHeadModel are not known"):
        freeze_heads(fused, lambda part: True)


def test_lf_h1_freezes_the_drawn_blocks_and_says_so():
    strategy = build("LF_H1", {"layers": 2})
    for seed in range(4):
        made = strategy.prepare(model(), {}, seed)
        assert strategy.facts(made)["frozen_blocks"] == sorted(select(LAYERS, 2, seed)[0].tolist())
    with pytest.raises(UserError, match="has 3"):
        build("LF_H1", {"layers": 4}).prepare(model(), {}, 0)
    everything = build("LF_H1", {"layers": 3}).prepare(model(), {}, 0)
    assert frozen_facts(everything)["frozen_blocks"] == [0, 1, 2]


def test_lf_h2_takes_each_heads_own_layers_and_the_lower_one_of_equals(tmp_path):
    norms = {("q", 0): (1, 3, 2), ("q", 1): (5, 5, 5), ("q", 2): (0, 0, 9), ("q", 3): (4, 1, 3), ("k", 0): (2, 1, 3)}
    norms |= {("k", 1): (1, 2, 3), ("v", 0): (3, 2, 1), ("v", 1): (1, 3, 2)}
    rows = [
        {"projection": p, "head": head, "layer": layer, "l2": float(value), "l2_right": 1.0}
        for (p, head), values in norms.items()
        for layer, value in enumerate(values)
    ]
    pl.DataFrame(rows, schema_overrides={"head": pl.Int32}).write_parquet(tmp_path / "heads.parquet")
    strategy = build("LF_H2", {"layers": 2})
    found = strategy.facts(strategy.prepare(model(), {"drift": tmp_path}, 0))["frozen_heads"]
    assert found == {
        "q": {"0": [1, 2], "1": [0, 1], "2": [0, 2], "3": [0, 2]},
        "k": {"0": [0, 2], "1": [1, 2]},
        "v": {"0": [0, 1], "1": [1, 2]},
    }
    # Whole projections: root of the sum of squares over heads: q (√42, √35, √119), k (√5, √5, √18), v (√10, √13, √5).
    whole = build("LF_H2", {"layers": 1, "granularity": "projection"})
    heads = whole.facts(whole.prepare(model(), {"drift": tmp_path}, 0))["frozen_heads"]
    assert heads == {"q": {str(h): [2] for h in range(4)}, "k": {str(h): [2] for h in range(2)}, "v": {"0": [1], "1": [1]}}
    with pytest.raises(UserError, match="has 3"):
        build("LF_H2", {"layers": 4}).prepare(model(), {"drift": tmp_path}, 0)


def test_lf_h2_by_block_leaves_tensors_outside_of_blocks_aside(tmp_path):
    tensors = [(None, 99.0), (0, 3.0), (0, 4.0), (1, 4.5), (1, 1.0), (2, 2.0), (2, 2.0)]  # 5, √21.25 and √8 by block
    frame = pl.DataFrame({"layer": [layer for layer, _ in tensors], "l2": [norm for _, norm in tensors], "l2_right": [1.0] * 7})
    frame.write_parquet(tmp_path / "tensors.parquet")
    strategy = build("LF_H2", {"layers": 2, "granularity": "block"})
    assert strategy.facts(strategy.prepare(model(), {"drift": tmp_path}, 0))["frozen_blocks"] == [0, 1]


def test_relative_norms_of_what_did_not_change_are_nothing_even_beside_a_base_of_zeros(tmp_path):
    changes = {0: (0.0, 0.0), 1: (1.0, 10.0), 2: (2.0, 40.0)}
    rows = [
        {"projection": p, "head": head, "layer": layer, "l2": change, "l2_right": base}
        for p, heads in {"q": 4, "k": 2, "v": 2}.items()
        for head in range(heads)
        for layer, (change, base) in changes.items()
    ]
    pl.DataFrame(rows, schema_overrides={"head": pl.Int32}).write_parquet(tmp_path / "heads.parquet")
    strategy = build("LF_H2", {"layers": 2, "norm": "relative"})
    heads = strategy.facts(strategy.prepare(model(), {"drift": tmp_path}, 0))["frozen_heads"]
    assert {tuple(layers) for projection in heads.values() for layers in projection.values()} == {(1, 2)}


def test_a_drift_without_heads_is_refused(tmp_path):
    empty = {"projection": pl.Utf8, "head": pl.Int32, "layer": pl.Int32, "l2": pl.Float64, "l2_right": pl.Float64}
    pl.DataFrame(schema=empty).write_parquet(tmp_path / "heads.parquet")
    with pytest.raises(UserError, match="no separate query, key and value heads"):
        build("LF_H2", {"layers": 1}).prepare(model(), {"drift": tmp_path}, 0)
