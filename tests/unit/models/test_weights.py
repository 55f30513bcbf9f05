"""Every tensor of the files is taken up, every parameter comes from them, and what is wrong is named with its file."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cft_ray.errors import UserError
from cft_ray.grid.settings import TrainingSettings
from cft_ray.models import loading
from cft_ray.models.architectures import tiny_model as make
from cft_ray.models.loading import skeleton
from cft_ray.models.stored import stored_tensors
from cft_ray.models.weights import changed, check_weights, snapshot
from cft_ray.training import engine, group
from cft_ray.training.loss import SummedLoss


def tiny_model(kind: str) -> Any:
    """The same."""
    return make(kind)


def load(folder: str, dtype: torch.dtype) -> Any:
    """Of any class: what is inside is known to the test alone."""
    return loading.load(folder, dtype=dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    def save(kind):
        folder = tmp_path_factory.mktemp(kind)
        model = tiny_model(kind)
        model.save_pretrained(folder)
        return folder, model

    return save


@pytest.fixture
def llama(saved):
    return saved("llama")[0]


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "mixtral", "gpt2", "cohere", "phi3"])
def test_what_is_loaded_is_what_was_saved(saved, kind):
    """Fused experts and tied heads among them."""
    folder, model = saved(kind)
    loaded = load(str(folder), dtype=torch.float32)
    assert dict(loaded.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_files_without_the_models_prefix_as_gpt2_has_them_on_the_hub(saved):
    folder, model = saved("gpt2")

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    rewrite(folder, strip)
    loaded = load(str(folder), dtype=torch.float32)
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)


def test_the_index_counts_and_not_what_else_lies_there(llama):
    tensors = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").rename(llama / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, llama / "older.safetensors")
    loaded = load(str(llama), dtype=torch.float32)
    assert torch.equal(loaded.lm_head.weight, tensors["lm_head.weight"])


def test_an_index_that_names_what_is_not_there(llama):
    tensors = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").rename(llama / "a.safetensors")
    weights = {**dict.fromkeys(tensors, "a.safetensors"), "model.extra.weight": "a.safetensors"}
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(UserError, match=r"model\.extra\.weight"):
        load(str(llama), dtype=torch.float32)


@pytest.mark.parametrize(("value", "word"), [(torch.nan, "NaN"), (torch.inf, "infinity")])
def test_a_weight_that_is_no_number_is_named_with_its_file(llama, value, word):
    rewrite(llama, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(value))
    with pytest.raises(UserError, match=rf"model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight holds {word}"):
        load(str(llama), dtype=torch.float32)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_what_was_loaded_otherwise_than_it_lies_in_the_file_is_named(llama, name):
    loaded = load(str(llama), dtype=torch.float32)
    files = {each.name: each.file for each in stored_tensors(llama)}
    check_weights(loaded, {}, files, llama, tied=False)
    loaded.get_parameter(name).data[1, 0] += 1e-3
    with pytest.raises(UserError, match=rf"{name} differs from its file") as raised:
        check_weights(loaded, {}, files, llama, tied=False)
    assert raised.value.where == str(llama / "model.safetensors")


@pytest.mark.parametrize("place", [0, -1])
def test_one_number_that_is_none_is_enough(llama, place):
    def change(tensors):
        tensors["model.norm.weight"][place] = torch.nan

    rewrite(llama, change)
    with pytest.raises(UserError, match=r"tensor model\.norm\.weight holds NaN"):
        load(str(llama), dtype=torch.bfloat16)


def test_a_row_that_transformers_takes_for_nothing_while_loading_is_told_with_the_remedy(saved):
    """Youtu's padding row: the tied head would predict otherwise than engines that read the files."""
    folder, _ = saved("youtu")
    assert not (load(str(folder), dtype=torch.float32).model.embed_tokens.weight == 0).all(1).any()
    config = json.loads((folder / "config.json").read_text())
    assert config.get("pad_token_id") is None
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 7}))
    with pytest.raises(UserError, match=r"sets row 7 of model\.embed_tokens\.weight \(pad_token_id\) to zero") as caught:
        load(str(folder), dtype=torch.float32)
    assert "pad_token_id to null" in str(caught.value)
    rewrite(folder, lambda tensors: tensors["model.embed_tokens.weight"][7].zero_())
    load(str(folder), dtype=torch.float32)


def test_a_weight_that_is_missing(llama):
    rewrite(llama, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"lack weights.*layers\.0\.mlp\.up_proj"):
        load(str(llama), dtype=torch.float32)


def test_a_tensor_that_is_left_over(llama):
    rewrite(llama, lambda tensors: tensors.update({"model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}))
    with pytest.raises(UserError, match=r"no place for.*layers\.9"):
        load(str(llama), dtype=torch.float32)


def test_rotary_frequencies_of_older_checkpoints_are_no_weights(llama):
    rewrite(llama, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}))
    load(str(llama), dtype=torch.float32)


def test_a_weight_of_another_shape(llama):
    rewrite(llama, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(UserError, match=r"norm\.weight"):
        load(str(llama), dtype=torch.float32)


def test_tied_in_the_configuration_but_two_tensors_in_the_files(llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load(str(llama), dtype=torch.float32)
    rewrite(llama, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    load(str(llama), dtype=torch.float32)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(str(tmp_path / "nowhere"), dtype=torch.float32)
    with pytest.raises(UserError, match="not a Hugging Face model"):
        load(str(tmp_path), dtype=torch.float32)


def test_a_file_that_is_cut(llama):
    data = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError):
        load(str(llama), dtype=torch.float32)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen3_moe", "gpt2"])
def test_room_for_weights_is_shaped_as_the_model(saved, kind):
    folder, model = saved(kind)
    room = skeleton(str(folder), dtype=torch.float32)
    shapes = {name: (parameter.shape, parameter.dtype) for name, parameter in model.named_parameters()}
    assert {name: (parameter.shape, parameter.dtype) for name, parameter in room.named_parameters()} == shapes
    assert [name for name, _ in room.named_buffers()] == [name for name, _ in model.named_buffers()]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt_oss", "glm4_moe"])
def test_buffers_in_bf16_are_those_of_plain_transformers(saved, kind):
    """Rotary frequencies stay in fp32; so they do on the way through the engine of one worker."""
    folder, _ = saved(kind)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded = load(str(folder), dtype=torch.bfloat16)
    assert [name for name, _ in loaded.named_buffers()] == [name for name, _ in plain.named_buffers()]
    with group.joined():
        deep = engine.initialise(SummedLoss(loaded, loaded), TrainingSettings(steps=1), ranks=1)
        deep.step(0.0)
        deep.close()
    assert not changed(dict(loaded.named_buffers()), snapshot(plain))
    assert any(buffer.dtype == torch.float32 for buffer in loaded.buffers())


def test_a_buffer_that_was_rounded_is_noticed():
    model = tiny_model("llama")
    before = snapshot(model)
    assert not changed(dict(model.named_buffers()), before)
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.bfloat16().float()
    assert changed(dict(model.named_buffers()), before) == ["model.rotary_emb.inv_freq"]
