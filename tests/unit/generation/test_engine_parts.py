"""Which models may follow each other in one engine, and what an engine and an answer are told; tiny folders made here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cft_ray.generation.likeness import likeness
from cft_ray.generation.requests import parameters
from cft_ray.generation.settings import ENVIRONMENT, engine_arguments, environment, prepare_environment
from cft_ray.grid.settings import ReplaySampling

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "_name_or_path": "a", "transformers_version": "5"}


def folder(
    place: Path, seed: int = 0, shape: tuple[int, int] = (4, 4), dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    torch.manual_seed(seed)
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(CONFIG | config))
    (place / "tokenizer.json").write_text("{}")
    tensors = {"model.norm.weight": torch.rand(4), "lm_head.weight": torch.rand(shape)}
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, place / "model.safetensors", {"format": "pt"})
    return place


def test_other_weights_are_alike_and_what_an_engine_reads_at_its_start_is_not(tmp_path):
    one = likeness(str(folder(tmp_path / "one")))
    assert one is not None and len(one) == 64
    alike = folder(tmp_path / "alike", seed=1, _name_or_path="b", transformers_version="6")
    for name in ("README.md", "LICENSE", ".gitattributes", "model.safetensors.index.json"):
        (alike / name).write_text("anything")
    (alike / "checkpoints").mkdir()
    assert likeness(str(alike)) == one
    found = {
        likeness(str(folder(tmp_path / "shape", shape=(5, 4)))),
        likeness(str(folder(tmp_path / "dtype", dtype=torch.bfloat16))),
        likeness(str(folder(tmp_path / "config", rope_theta=5.0))),
    }
    told = folder(tmp_path / "told")
    for name, text in (("tokenizer.json", '{"a": 1}'), ("generation_config.json", "{}"), ("chat_template.jinja", "x")):
        (told / name).write_text(text)
        found.add(likeness(str(told)))
    assert len(found) == 6 and one not in found and None not in found


def test_weights_over_several_files_are_the_same_weights(tmp_path):
    one, other = folder(tmp_path / "one"), folder(tmp_path / "other")
    (other / "model.safetensors").unlink()
    for number, (name, shape) in enumerate((("lm_head.weight", (4, 4)), ("model.norm.weight", (4,)))):
        save_file({name: torch.rand(shape)}, other / f"model-0000{number}-of-00002.safetensors")
    assert likeness(str(one)) == likeness(str(other))


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["GemmaForCausalLM"]},
        {"architectures": None},
        {"architectures": []},
        {"architectures": ["LlamaForCausalLM", "Other"]},
        {"quantization_config": {}},
        {"tie_word_embeddings": True},
    ],
)
def test_models_whose_weights_cannot_be_taken_are_like_none(tmp_path, config):
    assert likeness(str(folder(tmp_path / "m", **config))) is None


def test_damaged_absent_and_headless_weights_are_like_none(tmp_path):
    headless = folder(tmp_path / "headless")
    save_file({"model.norm.weight": torch.rand(4)}, headless / "model.safetensors")
    cut, absent = folder(tmp_path / "cut"), folder(tmp_path / "absent")
    (absent / "model.safetensors").unlink()
    assert likeness(str(headless)) is None and likeness(str(absent)) is None
    whole = (cut / "model.safetensors").read_bytes()
    for damaged in (whole[:4], whole[:20], whole[:8] + b"x" * (len(whole) - 8)):
        (cut / "model.safetensors").write_bytes(damaged)
        assert likeness(str(cut)) is None


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 100_000,
}


def told(tmp_path: Path, on: Any = "cpu", config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | (config or {})))
    return engine_arguments(str(tmp_path), **{"dtype": "auto", "max_length": 4096, "seed": 5, "on": on, **more})


@pytest.mark.parametrize(
    ("config", "token"),
    [
        ({}, 2 * 3 * 4 * 16 * 4),
        ({"num_key_value_heads": 2}, 2 * 3 * 2 * 16 * 4),
        ({"num_key_value_heads": 1, "head_dim": 32}, 2 * 3 * 32 * 4),
    ],
)
def test_the_cache_holds_all_sequences_within_bounds(tmp_path, config, token):
    """Keys and values of each layer and head, 4 bytes a number; at least 64 MiB and at most 4 GiB."""
    given = told(tmp_path, config=config, sequences=20)
    assert given["kv_cache_memory_bytes"] == min(max(token * 4096 * 20, 2**26), 2**32)
    assert told(tmp_path, config=config, sequences=1)["kv_cache_memory_bytes"] == 2**26
    assert told(tmp_path, config=config, sequences=10**6)["kv_cache_memory_bytes"] == 2**32
    assert told(tmp_path, config=config, sequences=20, dtype="float16")["kv_cache_memory_bytes"] == max(
        token // 2 * 4096 * 20, 2**26
    )


def test_what_an_engine_is_told(tmp_path):
    given = told(tmp_path)
    assert (given["model"], given["seed"], given["max_num_seqs"], given["max_num_batched_tokens"]) == (
        str(tmp_path),
        5,
        128,
        4096,
    )
    same = {"enable_prefix_caching": False, "disable_log_stats": True, "use_tqdm_on_load": False}
    assert given | same == given and given["enforce_eager"] is True and given["enable_chunked_prefill"] is False
    assert told(tmp_path, max_length=5000)["max_num_batched_tokens"] == 8192
    assert told(tmp_path, batch_tokens=9000)["max_num_batched_tokens"] == 9000
    gpu = told(tmp_path, "cuda")
    assert gpu | same == gpu and (gpu["tensor_parallel_size"], gpu["gpu_memory_utilization"]) == (1, 0.9)
    assert "max_num_seqs" not in gpu and "max_num_batched_tokens" not in gpu
    shared = told(tmp_path, "cuda", gpus=0.25, sequences=7, batch_tokens=11, gpu_memory=0.8)
    assert (shared["tensor_parallel_size"], shared["gpu_memory_utilization"]) == (1, pytest.approx(0.2))
    assert (shared["max_num_seqs"], shared["max_num_batched_tokens"]) == (7, 11)
    assert told(tmp_path, "cuda", gpus=2)["gpu_memory_utilization"] == 0.9


def test_the_environment_yields_to_the_users(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    assert environment() == ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "INFO"}
    prepare_environment()
    assert environment() == ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "INFO"}
    assert ENVIRONMENT["VLLM_RAISE_ON_LOGIT_NANS"] == "1" and ENVIRONMENT["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_an_answer_is_sampled_as_the_grid_says():
    sampling = ReplaySampling(temperature=0.5, top_p=0.9)
    told = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 12, "stop_token_ids": [2, 3]}
    assert parameters(sampling, 7, 12, (2, 3)) == told
