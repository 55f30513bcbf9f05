"""Which rows are which head's."""

import pytest

from cft_ray.drift.heads import HeadCounts, HeadSlice, decoder_layer, head_slices

COUNTS = HeadCounts(query=4, key_value=2, size=3)


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        ({"num_attention_heads": 32, "hidden_size": 4096, "num_key_value_heads": 8}, HeadCounts(32, 8, 128)),
        ({"num_attention_heads": 8, "hidden_size": 512}, HeadCounts(8, 8, 64)),
        ({"num_attention_heads": 16, "hidden_size": 2048, "head_dim": 256, "num_key_value_heads": None}, HeadCounts(16, 16, 256)),
        ({"text_config": {"num_attention_heads": 2, "hidden_size": 64}}, HeadCounts(2, 2, 32)),
        ({"model_type": "mamba"}, None),
    ],
)
def test_counts_come_from_the_config(config, counts):
    assert HeadCounts.of(config) == counts


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_separate_projections(kind):
    q = head_slices(f"model.layers.11.self_attn.q_proj.{kind}", 12, COUNTS)
    assert q == [HeadSlice(11, "q", head, 3 * head, 3 * head + 3) for head in range(4)]
    v = head_slices(f"model.layers.0.self_attn.v_proj.{kind}", 6, COUNTS)
    assert v == [HeadSlice(0, "v", 0, 0, 3), HeadSlice(0, "v", 1, 3, 6)]


def test_stacked_projection():
    parts = head_slices("model.layers.2.self_attn.qkv_proj.weight", 24, COUNTS)
    assert [(part.projection, part.head) for part in parts] == [
        *(("q", head) for head in range(4)),
        *(("k", head) for head in range(2)),
        *(("v", head) for head in range(2)),
    ]
    assert [part.start for part in parts] == list(range(0, 24, 3))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("model.layers.0.self_attn.o_proj.weight", 12),
        ("model.layers.0.self_attn.q_proj.weight", 13),
        ("transformer.h.0.attn.c_attn.weight", 24),
        ("gpt_neox.layers.0.attention.query_key_value.weight", 24),
        ("model.layers.0.self_attn.q_norm.weight", 12),
        ("model.layers.0.mlp.up_proj.weight", 12),
    ],
)
def test_everything_else_has_no_heads(name, rows):
    assert head_slices(name, rows, COUNTS) == []


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.31.mlp.up_proj.weight", 31),
        ("transformer.h.5.ln_1.bias", 5),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
        ("model.norm.weight", None),
    ],
)
def test_layers(name, layer):
    assert decoder_layer(name) == layer
