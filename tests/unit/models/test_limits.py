"""What a model's files say that no training may exceed, read as JSON."""

import json

import pytest

from cft_ray.errors import UserError
from cft_ray.models.limits import Limits, check_end, check_length, check_packed, check_vocabulary, limits_of, positions_of, within


def files(**content):
    data = {name.replace("__", "."): json.dumps(value).encode() for name, value in content.items()}
    return limits_of(data.get)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        # Qwen 2.5 with YaRN: the number is that before scaling; DeepSeek: the number is that after it
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 163840,
                "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            },
            163840,
        ),
        # Llama 3.1: the factor is in the number already
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        ({"max_position_embeddings": 2048, "alibi": True}, None),
        ({"model_type": "mamba"}, None),
        ({"max_position_embeddings": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 128),
        # by type of layer: one of them is scaled
        (
            {
                "max_position_embeddings": 128,
                "rope_parameters": {"sliding": {"rope_type": "default"}, "full": {"rope_type": "linear", "factor": 2.0}},
            },
            256,
        ),
        # Gemma 3: the factor is in the number already
        (
            {"model_type": "gemma3_text", "max_position_embeddings": 131072, "rope_scaling": {"type": "linear", "factor": 8}},
            131072,
        ),
    ],
)
def test_positions_with_the_factor_of_rotary_scaling(config, positions):
    assert positions_of(config) == positions


def test_what_is_asked_for_ends_where_the_model_does():
    assert (within(64, 100), within(64, 10), within(None, 100)) == (64, 10, 100)


def test_a_longer_row_than_the_model_has_positions():
    limits = files(config__json={"max_position_embeddings": 64})
    check_length(limits, 64, where="m")
    with pytest.raises(UserError, match="64 positions"):
        check_length(limits, 65, where="m")


def test_text_models_inside_larger_ones():
    assert files(config__json={"text_config": {"max_position_embeddings": 77, "vocab_size": 9}}).positions == 77


VOCABULARY = {"model": {"vocab": {"a": 0, "</s>": 1}}, "added_tokens": [{"id": 2, "content": "<|x|>"}]}


def test_tokens_beyond_the_embedding():
    with pytest.raises(UserError, match=r"1 tokens beyond.*embedding of 2 rows.*<\|x\|>"):
        check_vocabulary(files(config__json={"vocab_size": 2}, tokenizer__json=VOCABULARY), where="m")
    check_vocabulary(files(config__json={"vocab_size": 3}, tokenizer__json=VOCABULARY), where="m")


def test_marks_of_other_media_may_lie_beyond_it():
    """Gemma 3 1B: `<image_soft_token>` has the id that its text model's embedding ends before."""
    marks = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "<image_soft_token>"}]}
    check_vocabulary(files(config__json={"vocab_size": 1}, tokenizer__json=marks), where="m")


def test_a_pad_token_beyond_the_embedding_is_named_as_such():
    limits = files(config__json={"vocab_size": 2}, tokenizer__json=VOCABULARY, tokenizer_config__json={"pad_token": "<|x|>"})
    with pytest.raises(UserError, match="pad_token has id 2"):
        check_vocabulary(limits, where="m")


def test_unigram_vocabularies_are_lists():
    limits = files(config__json={"vocab_size": 2}, tokenizer__json={"model": {"vocab": [["a", 0.0], ["b", 0.0], ["c", 0.0]]}})
    assert limits.tokens == {"c": 2}


@pytest.mark.parametrize(
    ("config", "generation", "fits"), [(7, None, False), (1, None, True), (7, [7, 1], True), (None, None, True)]
)
def test_the_end_token_is_one_that_engines_stop_at(config, generation, fits):
    limits = files(
        config__json={"eos_token_id": config},
        generation_config__json={"eos_token_id": generation},
        tokenizer__json=VOCABULARY,
        tokenizer_config__json={"eos_token": "</s>"},
    )
    if fits:
        check_end(limits, where="m")
    else:
        with pytest.raises(UserError, match="ends a text with token 1, the model's configuration with 7"):
            check_end(limits, where="m")


def test_nothing_said_nothing_refused():
    assert limits_of(lambda name: None) == Limits()
    check_length(limits_of(lambda name: b"{"), 10**6, where="m")


@pytest.mark.parametrize(
    "content",
    [
        {"config__json": {"max_position_embeddings": 8, "rope_scaling": {"type": "linear", "factor": float("inf")}}},
        {"config__json": {"max_position_embeddings": True, "vocab_size": True, "rope_scaling": "linear"}},
        {"config__json": {"text_config": 3}, "tokenizer__json": {"added_tokens": [1]}},
        {"tokenizer__json": {"model": {"vocab": {"a": "b"}}}, "tokenizer_config__json": {"added_tokens_decoder": {"x": {}}}},
        {"config__json": ["a list"]},
    ],
)
def test_files_of_another_form_limit_nothing(content):
    """Whoever loads the model says what is wrong with them."""
    limits = files(**content)
    check_length(limits, 8, where="m")
    check_vocabulary(limits, where="m")
    check_end(limits, where="m")


@pytest.mark.parametrize(
    ("config", "packed"),
    [
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "fp8"),
        ({"quantization_config": {"bits": 4}}, "unnamed"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "mxfp4"),
        ({"quantization_config": None}, None),
        ({"quantization_config": {}}, None),
        ({"vocab_size": 4}, None),
    ],
)
def test_quantised_weights_are_not_trained(config, packed):
    found = files(config__json=config)
    assert found.packed == packed
    if packed is None:
        check_packed(found, where="w")
    else:
        with pytest.raises(UserError, match=f"quantised \\({packed}, "):
            check_packed(found, where="w")
