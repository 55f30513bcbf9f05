"""What vLLM is told, and the seeds of replay."""

import json

import pytest

from cft_ray.errors import UserError
from cft_ray.generation import settings
from cft_ray.generation.settings import engine_arguments, shared_arguments
from cft_ray.grid.settings import EngineSettings, ReplaySampling
from cft_ray.stages.replay import answer_seed

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
}


@pytest.fixture
def model(tmp_path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path)


@pytest.mark.parametrize(("asked", "room"), [(1, 4096), (4096, 4096), (4097, 8192)])
def test_engines_have_room_for_more_than_is_asked_up_to_the_models_own_limit(tmp_path, asked, room):
    for limit, given in ((10_000, room), (300, 300)):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": limit}))
        told = engine_arguments(str(tmp_path), dtype="auto", max_length=asked, seed=0, on="cpu")
        assert told["max_model_len"] == given


def test_an_engine_has_the_positions_that_rotary_scaling_adds(tmp_path):
    scaled = {"max_position_embeddings": 256, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | scaled))
    assert engine_arguments(str(tmp_path), dtype="auto", max_length=4096, seed=0, on="cpu")["max_model_len"] == 1024


def test_cpu_is_float32_unless_told(model):
    given = engine_arguments(model, dtype="auto", max_length=4096, seed=0, on="cpu", sequences=512)
    assert given["dtype"] == "float32" and given["enforce_eager"]
    assert given["max_model_len"] == 256
    # keys and values x 3 layers x 1 head x 32 dimensions x 4 bytes, for 512 sequences of 256 tokens
    assert given["kv_cache_memory_bytes"] == 2 * 3 * 32 * 4 * 512 * 256
    half = engine_arguments(model, dtype="float16", max_length=128, seed=0, on="cpu", sequences=4096)
    assert half["dtype"] == "float16" and half["max_model_len"] == 256
    assert half["kv_cache_memory_bytes"] == 2 * 3 * 32 * 2 * 4096 * 256


def test_gpu_leaves_the_dtype_to_the_checkpoint(model):
    given = engine_arguments(model, dtype="auto", max_length=4096, seed=0, on="cuda", gpus=4)
    assert given["dtype"] == "auto" and given["tensor_parallel_size"] == 4
    assert "enforce_eager" not in given and "kv_cache_memory_bytes" not in given


@pytest.mark.parametrize(("gpus", "split", "memory"), [(0, 1, 0.8), (1, 1, 0.8), (2, 2, 0.8), (0.5, 1, 0.4)])
def test_an_engine_that_is_kept_takes_the_stages_gpus_or_the_machines_one(model, monkeypatch, gpus, split, memory):
    monkeypatch.setattr(settings, "device", lambda: "cuda")
    given = shared_arguments(model, ReplaySampling(), EngineSettings(gpu_memory=0.8, sequences=7), gpus)
    assert (given["tensor_parallel_size"], given["gpu_memory_utilization"]) == (split, pytest.approx(memory))
    assert given["max_num_seqs"] == 7 and "max_num_batched_tokens" not in given


def test_no_model(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        engine_arguments(str(tmp_path), dtype="auto", max_length=16, seed=0, on="cpu")


def test_answer_seeds_differ_by_seed_row_and_pass():
    seeds = {answer_seed(seed, row, number) for seed in range(3) for row in range(20) for number in range(3)}
    assert len(seeds) == 180 and all(0 <= value < 2**63 for value in seeds)
    assert answer_seed(5, 7, 1) == answer_seed(5, 7, 1)
