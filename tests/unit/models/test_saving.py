"""What would lose a training at its end is known, and mended, before its beginning."""

import json

import pytest
from transformers import GenerationConfig

from cft_ray.errors import UserError
from cft_ray.models.architectures import tiny_model
from cft_ray.models.saving import save_side_files
from cft_ray.training.model import byte_tokenizer


def test_sampling_settings_without_sampling_as_llama_2_chat_has_them(tmp_path):
    model = tiny_model("llama")
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.9, top_p=0.6, eos_token_id=2)
    (note,) = save_side_files(model, byte_tokenizer(64), tmp_path / "side")
    assert "do_sample" in note
    read = GenerationConfig.from_pretrained(tmp_path / "side")
    assert (read.do_sample, read.temperature, read.top_p, read.eos_token_id) == (True, 0.9, 0.6, 2)


def test_what_sampling_does_not_mend_is_left_out(tmp_path):
    model = tiny_model("llama")
    model.generation_config = GenerationConfig(do_sample=True, eos_token_id=2)
    model.generation_config.cache_implementation = "no such cache"
    (note,) = save_side_files(model, byte_tokenizer(64), tmp_path / "side")
    assert "token ids" in note
    read = GenerationConfig.from_pretrained(tmp_path / "side")
    assert read.eos_token_id == 2 and read.cache_implementation is None


def test_a_valid_one_is_written_as_it_is(tmp_path):
    model = tiny_model("llama")
    assert save_side_files(model, byte_tokenizer(64), tmp_path / "side") == ()
    names = {path.name for path in (tmp_path / "side").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names


def test_a_configuration_that_cannot_be_written_is_said_before(tmp_path):
    model = tiny_model("llama")
    model.config.strange = {1, 2}
    with pytest.raises(UserError, match="could not be saved"):
        save_side_files(model, byte_tokenizer(64), tmp_path / "side")


@pytest.mark.parametrize(("ends", "named"), [((7,), 7), ((7, 2), [7, 2])])
def test_both_configurations_name_the_ends_and_the_card_lies_beside_them(tmp_path, ends, named):
    model = tiny_model("llama")
    save_side_files(model, byte_tokenizer(64), tmp_path / "side", ends=ends, card="# How to ask\n")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "side" / name).read_text())["eos_token_id"] == named
    assert (tmp_path / "side" / "README.md").read_text() == "# How to ask\n"
