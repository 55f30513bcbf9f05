"""What a model's files say that no training may exceed, each at its border."""

import json
from typing import Any

import pytest

from cft_ray.errors import UserError
from cft_ray.models.config import positions, read_config
from cft_ray.models.limits import (
    Limits,
    check_end,
    check_length,
    check_vocabulary,
    in_folder,
    limits_of,
    positions_in,
    positions_of,
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"max_position_embeddings": 10, "n_positions": 8}, 8),
        ({"max_sequence_length": 9}, 9),
        ({"max_target_positions": 7}, 7),
        ({"max_position_embeddings": 0}, None),
        ({"max_position_embeddings": -1, "n_positions": 5}, 5),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": 10, "position_embedding_type": "nope"}, None),
        ({"max_position_embeddings": 10, "position_embedding_type": "alibi"}, None),
        ({"max_position_embeddings": 10, "model_type": "bloom"}, None),
        ({"max_position_embeddings": 10, "rope_scaling": {"type": "dynamic", "factor": 1}}, 10),
        ({"max_position_embeddings": 10, "rope_scaling": {"type": "dynamic", "factor": 1.5}}, 15),
        ({"max_position_embeddings": 10, "rope_scaling": {"type": "linear", "factor": 0.5}}, 10),
        ({"max_position_embeddings": 10, "rope_scaling": {"type": "linear", "factor": 1e6}}, 10),
        ({"max_position_embeddings": 10, "rope_scaling": {"type": "linear", "factor": 999_999}}, 9_999_990),
        ({"max_position_embeddings": 10, "rope_scaling": {"type": "linear", "factor": "2"}}, 10),
        ({"max_position_embeddings": 10, "rope_scaling": "linear"}, 10),
        ({"n_positions": 10, "rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 4}}, 10),
        ({"n_positions": 10, "rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 8}}, 16),
        ({"n_positions": 10, "rope_parameters": {"a": {"type": "linear", "factor": 2}, "b": {"type": "yarn", "factor": 3}}}, 30),
    ],
    ids=str,
)  # fmt: skip
def test_positions_of_a_configuration(config, expected):
    assert positions_of(config) == expected


def of(**content: Any) -> Limits:
    data = {name.replace("__", "."): json.dumps(value).encode() for name, value in content.items()}
    return limits_of(data.get)


def test_what_a_models_files_say():
    tokenizer = {
        "model": {"vocab": {"a": 0, "b": 1, "far": 9}},
        "added_tokens": [{"content": "<s>", "id": 2}, {"content": "<image>", "id": 8}],
    }
    roles = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "unk_token": "nowhere",
        "added_tokens_decoder": {"3": {"content": "</s>"}},
    }
    found = of(
        config__json={"vocab_size": 8, "max_position_embeddings": 64, "eos_token_id": [3, 5]},
        generation_config__json={"eos_token_id": 6},
        tokenizer__json=tokenizer,
        tokenizer_config__json=roles,
    )
    assert found == Limits(64, 8, frozenset({3, 5, 6}), {"far": 9}, {"bos_token": 2, "eos_token": 3})
    assert of(config__json={"vocab_size": 9}, tokenizer__json=tokenizer).tokens == {"far": 9}
    assert of(config__json={"vocab_size": 10}, tokenizer__json=tokenizer).tokens == {}
    assert of(tokenizer__json=tokenizer).tokens == {} and of().ends == frozenset()
    unigram = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}
    assert of(config__json={"vocab_size": 1}, tokenizer__json=unigram).tokens == {"b": 1}
    for vocabulary in (True, -1, "8", None):
        assert of(config__json={"vocab_size": vocabulary}).vocabulary is None
    assert of(config__json={"vocab_size": 0}).vocabulary == 0


def test_what_is_said_of_the_text_model_counts_before_the_whole():
    nested = {"vocab_size": 5, "max_position_embeddings": 3, "text_config": {"vocab_size": 7, "max_position_embeddings": None}}
    assert (of(config__json=nested).vocabulary, of(config__json=nested).positions) == (7, 3)
    assert of(config__json={"llm_config": {"vocab_size": 9}}).vocabulary == 9
    assert positions_in({"config.json": json.dumps(nested).encode()}.get) == 3 and positions_in({}.get) is None
    for broken in (b"[1]", b"{", b"\xff", b"[" * 100_000):
        assert limits_of({"config.json": broken}.get) == Limits()


def test_a_length_a_vocabulary_and_an_end_at_their_borders():
    check_length(Limits(positions=10), 10, where="x")
    with pytest.raises(UserError, match=r"training\.max_length is 11, but the model has 10 positions") as raised:
        check_length(Limits(positions=10), 11, where="x")
    assert raised.value.fix == "set training.max_length to at most 10"
    check_length(Limits(), 10**9, where="x")
    check_vocabulary(Limits(vocabulary=4, roles={"pad_token": 3}), where="x")
    with pytest.raises(UserError, match="the tokenizer's pad_token has id 4, but the model's embedding has 4 rows"):
        check_vocabulary(Limits(vocabulary=4, roles={"pad_token": 4}), where="x")
    check_vocabulary(Limits(roles={"pad_token": 4}, tokens={"a": 9}), where="x")
    with pytest.raises(UserError, match=r"2 tokens beyond .* 4 rows \(the first is 'b' with id 5\)"):
        check_vocabulary(Limits(vocabulary=4, tokens={"a": 9, "b": 5}), where="x")
    for ends, end in ((frozenset({1, 2}), 2), (frozenset(), 2), (frozenset({1}), None)):
        check_end(Limits(ends=ends, roles={} if end is None else {"eos_token": end}), where="x")
    with pytest.raises(UserError, match="ends a text with token 3, the model's configuration with 1 or 2"):
        check_end(Limits(ends=frozenset({2, 1}), roles={"eos_token": 3}), where="x")
    with pytest.raises(UserError):
        check_end(Limits(ends=frozenset({1}), roles={"eos_token": 0}), where="x")


def test_files_of_a_folder_are_read_where_they_are(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    read = in_folder(tmp_path)
    assert read("config.json") == b"{}" and read("no.json") is None and read("folder") is None


def test_a_configuration_is_read_from_a_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_config(str(tmp_path / "no"))
    with pytest.raises(UserError, match="not a Hugging Face model"):
        read_config(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 77}))
    assert positions(read_config(str(tmp_path))) == 77
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such kind"}))
    with pytest.raises(UserError, match="not a Hugging Face model"):
        read_config(str(tmp_path))
