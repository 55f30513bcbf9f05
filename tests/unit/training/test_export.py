"""What is exported is what was trained: every tensor, in as many files as it takes, or nothing at all."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cft_ray.errors import StageFailed
from cft_ray.models import loading
from cft_ray.models.architectures import tiny_model
from cft_ray.strategies.lora import LowRank
from cft_ray.training import export, group

IDS = torch.arange(3, 40)[None]


@pytest.fixture(autouse=True)
def one_process():
    with group.joined():
        yield


def exported(model: Any, folder, *, weights=None, **more):
    """Export a model with its configuration alone beside it."""
    model.config.save_pretrained(folder / "side")
    export.write(weights or export.gathered_parameters(model), model, folder / "side", folder / "model", **more)
    return folder / "model"


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def stored(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "cohere", "mixtral", "glm4_moe"])
@pytest.mark.parametrize("shard_bytes", [5_000, 2**30])
def test_every_tensor_comes_back_from_one_file_or_several(kind, shard_bytes, tmp_path):
    """Tied heads, fused experts, buffers that are part of the files (a router's bias) among them."""
    model: Any = tiny_model(kind)
    buffers = list(export.stored_buffers(model))
    assert bool(buffers) == (kind == "glm4_moe")
    for _, buffer in buffers:
        buffer.normal_()
    folder = exported(model, tmp_path, shard_bytes=shard_bytes)
    model.save_pretrained(tmp_path / "theirs")
    expected, found = stored(tmp_path / "theirs"), stored(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    torch.testing.assert_close(logits(loading.load(str(folder), dtype=torch.float32)), logits(model), rtol=0, atol=0)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if shard_bytes > 5_000:
        assert files == ["model.safetensors"] and not (folder / export.INDEX).exists()
        return
    assert len(files) > 10
    assert files == [f"model-{place:05d}-of-{len(files):05d}.safetensors" for place in range(1, len(files) + 1)]
    index = json.loads((folder / export.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    homes = {}
    for name in files:
        with safe_open(folder / name, framework="pt") as shard:
            homes |= dict.fromkeys(shard.keys(), name)
            sizes = [shard.get_tensor(key).nbytes for key in shard.keys()]  # noqa: SIM118 - not a mapping
        assert sum(sizes) <= shard_bytes or len(sizes) == 1, "a file is larger than it may be only where it holds one tensor"
    assert index["weight_map"] == homes


@pytest.mark.parametrize("shard_bytes", [5_000, 2**30])
def test_a_byte_that_changes_on_the_way_to_the_disk_leaves_no_model(shard_bytes, tmp_path, monkeypatch):
    save = export.save_file

    def tampered(shard, path, **more):
        save(shard, path, **more)
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(export, "save_file", tampered)
    with pytest.raises(StageFailed, match="reads back differently"):
        exported(tiny_model("llama"), tmp_path, shard_bytes=shard_bytes)
    assert [path.name for path in tmp_path.iterdir()] == ["side"]


def test_a_tensor_that_is_lost_on_the_way_leaves_no_model(tmp_path, monkeypatch):
    save = export.save_file
    monkeypatch.setattr(export, "save_file", lambda shard, path, **more: save(dict(list(shard.items())[1:]), path, **more))
    with pytest.raises(StageFailed, match="not in the files"):
        exported(tiny_model("llama"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["side"]


def test_a_model_that_does_not_pass_its_check_leaves_none(tmp_path):
    with pytest.raises(StageFailed, match="unlike"):
        exported(
            tiny_model("llama"), tmp_path, check=lambda folder: "unlike" if (folder / "model.safetensors").exists() else None
        )
    assert [path.name for path in tmp_path.iterdir()] == ["side"]


# LoRA


def adapted(model: Any, *modules: str) -> tuple[LowRank, Any]:
    """A model with adapters that say something."""
    strategy = LowRank(rank=4, alpha=8, target_modules=modules)
    prepared = strategy.prepare(model, {}, seed=0)
    torch.manual_seed(1)
    for name, parameter in prepared.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.1)
    return strategy, prepared


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("qwen2", ("q_proj", "k_proj", "v_proj", "o_proj")),  # biases on three of the four
        ("qwen2", ("down_proj",)),
        ("glm4_moe", ("q_proj", "o_proj")),
        ("llama", ("lm_head", "q_proj")),
    ],
)
def test_merged_layers_equal_adapted_layers(kind, modules, tmp_path):
    model: Any = tiny_model(kind)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "before")
    plain = logits(model)
    strategy, prepared = adapted(model, *modules)
    expected = logits(prepared)
    assert not torch.allclose(expected, plain, atol=1e-2), "the adapters say nothing"
    folder = exported(model, tmp_path, weights=strategy.exported(prepared))
    before, found = stored(tmp_path / "before"), stored(folder)
    assert found.keys() == before.keys()
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert {name.split(".")[-2] for name in changed} == set(modules) and all(name.endswith("weight") for name in changed)
    torch.testing.assert_close(logits(loading.load(str(folder), dtype=torch.float32)), expected, rtol=1e-4, atol=1e-4)


def test_a_head_that_was_tied_to_the_embedding_is_exported_by_itself(tmp_path):
    config = tiny_model("llama").config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    embedding = model.model.embed_tokens.weight.clone()
    strategy, prepared = adapted(model, "lm_head")
    expected = logits(prepared)
    folder = exported(model, tmp_path, weights=strategy.exported(prepared))
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    loaded: Any = loading.load(str(folder), dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(loaded.model.embed_tokens.weight, embedding)
    assert not torch.allclose(loaded.lm_head.weight, embedding, atol=1e-3)


def test_an_adapter_that_is_not_merged_is_an_error():
    strategy, prepared = adapted(tiny_model("llama"), "q_proj")
    prepared.model.layers[1].self_attn.q_proj.base_layer = torch.nn.Identity()  # its weight has no name any more
    with pytest.raises(StageFailed, match="1 adapted layers were not merged"):
        list(strategy.exported(prepared))
