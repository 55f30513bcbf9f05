"""Where an answer ends, and that stages which may share an engine ask for the same one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cft_ray.generation import settings
from cft_ray.generation.budget import NEW_TOKENS, RESERVED, fitted
from cft_ray.generation.settings import device, end_tokens, engine_arguments, shared_arguments
from cft_ray.grid.settings import EngineSettings, GenerationSettings, JudgeSettings, ReplaySampling

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3,
    "max_position_embeddings": 10_000,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("named", "taught", "ends"),
    [
        (None, (5, 6), (5, 6)),
        ({}, (5,), (5,)),
        ({"eos_token_id": 2}, (5,), (5, 2)),
        ({"eos_token_id": [2, 5, 7]}, (5, 6), (5, 6, 2, 7)),
        ({"eos_token_id": 0}, (5,), (5, 0)),
        ({"eos_token_id": 5}, (), (5,)),
    ],
    ids=str,
)
def test_an_answer_ends_where_it_was_taught_to_and_where_the_model_says(model, named, taught, ends):
    if named is not None:
        (Path(model) / "generation_config.json").write_text(json.dumps(named))
    assert end_tokens(model, taught) == ends


def test_the_device_is_a_gpu_where_there_is_one(monkeypatch):
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device() == name


@pytest.mark.parametrize(
    "asked", [GenerationSettings(max_length=100), ReplaySampling(max_length=3000), JudgeSettings(max_length=4096)]
)
def test_stages_that_ask_for_less_than_there_is_room_for_share_an_engine(model, asked):
    limits = EngineSettings(sequences=7, batch_tokens=9000, gpu_memory=0.5)
    told = shared_arguments(model, asked, limits, 1)
    assert told == engine_arguments(
        model, dtype="auto", max_length=4096, seed=0, on=device(), gpus=1, sequences=7, batch_tokens=9000, gpu_memory=0.5
    )
    assert told["max_model_len"] == 4096 and told["seed"] == 0 and told["max_num_seqs"] == 7
    half = asked.model_copy(update={"dtype": "float16"})
    assert shared_arguments(model, half, limits, 1)["dtype"] == "float16"


def test_what_a_cpu_engine_takes_where_nothing_is_said(model):
    told: Any = engine_arguments(model, dtype="auto", max_length=1, seed=0, on="cpu")
    assert (told["max_num_seqs"], told["max_num_batched_tokens"], settings.CPU_SEQUENCES, settings.CPU_BATCH_TOKENS) == (
        128,
        4096,
        128,
        4096,
    )
    assert (
        engine_arguments(model, dtype="auto", max_length=5000, seed=0, on="cpu", batch_tokens=100)["max_num_batched_tokens"]
        == 8192
    )
    small = engine_arguments(model, dtype="bfloat16", max_length=1, seed=0, on="cpu", sequences=50)
    assert small["kv_cache_memory_bytes"] == 2 * 3 * 32 * 2 * 4096 * 50


@pytest.mark.parametrize(("gpus", "parallel", "memory"), [(1, 1, 0.8), (0.5, 1, 0.4), (0, 1, 0.8), (3, 3, 0.8), (2.0, 2, 0.8)])
def test_a_share_of_a_gpu_is_a_share_of_its_memory(model, gpus, parallel, memory):
    told = engine_arguments(model, dtype="auto", max_length=1, seed=0, on="cuda", gpus=gpus, gpu_memory=0.8)
    assert told["tensor_parallel_size"] == parallel and told["gpu_memory_utilization"] == pytest.approx(memory)


def test_a_prompt_that_is_cut_leaves_a_quarter_to_the_answer():
    assert (NEW_TOKENS, RESERVED) == (256, 4)
    prompt = list(range(1000))
    assert [fitted(prompt, 50, length).new_tokens for length in (2, 3, 4, 7, 8, 100, 199, 200, 400)] == [
        1,
        1,
        1,
        1,
        2,
        25,
        49,
        50,
        50,
    ]
    assert fitted([1], 5, 2).new_tokens == 1 and fitted([1, 2], 5, 2).tokens == [2]
