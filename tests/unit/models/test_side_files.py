"""What lies beside the weights of a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from cft_ray.errors import UserError
from cft_ray.models import limits
from cft_ray.models.saving import save_side_files
from cft_ray.models.stored import StoredTensor


def tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**shape, "eos_token_id": 2, **changes}))


class _Tokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def saved(folder: Path, model: Any, **more: Any) -> tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]:
    notes = save_side_files(model, _Tokenizer(), folder, **more)  # pyright: ignore[reportArgumentType]
    config, generation = (json.loads((folder / name).read_text()) for name in ("config.json", "generation_config.json"))
    return notes, config, generation


def test_side_files_are_those_of_the_model(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "left").write_text("x")
    notes, config, generation = saved(tmp_path / "out", tiny())
    assert notes == () and config["architectures"] == ["LlamaForCausalLM"]
    assert (config["eos_token_id"], generation["eos_token_id"]) == (2, 2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "generation_config.json", "tokenizer.json"}
    _, config, generation = saved(tmp_path / "out", tiny(), ends=(7,), card="words")
    assert (config["eos_token_id"], generation["eos_token_id"]) == (7, 7) and (
        tmp_path / "out" / "README.md"
    ).read_text() == "words"
    _, config, generation = saved(tmp_path / "out", tiny(), ends=(7, 2))
    assert (config["eos_token_id"], generation["eos_token_id"]) == ([7, 2], [7, 2])


def test_a_model_without_generation_settings_gets_some(tmp_path):
    for ends, named in (((), 2), ((5,), 5)):
        model = tiny()
        model.generation_config = None
        assert saved(tmp_path, model, ends=ends)[2]["eos_token_id"] == named


@pytest.mark.parametrize(
    ("settings", "note", "kept"),
    [
        ({"do_sample": False, "temperature": 0.5}, "do_sample is set to true", {"do_sample": True, "temperature": 0.5}),
        (
            {"do_sample": False, "temperature": 0.5, "num_return_sequences": 3, "num_beams": 1, "top_p": 0.9},
            "do_sample is set",
            {"top_p": 0.9},
        ),
    ],
)
def test_generation_settings_that_contradict_each_other_are_mended(tmp_path, settings, note, kept):
    model = tiny()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    notes, _, generation = saved(tmp_path, model, ends=(7,))
    assert len(notes) == 1 and note in notes[0] and generation["eos_token_id"] == 7
    assert {name: generation[name] for name in kept} == kept
    assert isinstance(model.generation_config, GenerationConfig) and model.generation_config.do_sample is True


def test_what_cannot_be_saved_names_the_model(tmp_path):
    class Broken(_Tokenizer):
        def save_pretrained(self, folder: Path) -> None:
            raise ValueError("first line\nsecond line")

    for name, where in (("org/model", "org/model"), ("", "LlamaForCausalLM")):
        model = tiny()
        model.config.name_or_path = name
        with pytest.raises(UserError, match=r"could not be saved: first line\n") as raised:
            save_side_files(model, Broken(), tmp_path)  # pyright: ignore[reportArgumentType]
        assert raised.value.where == where


def test_a_stored_tensor_counts_its_elements():
    assert [StoredTensor("x", Path("f"), 0, "F32", shape).parameters for shape in ((), (3,), (2, 3, 4), (0, 5))] == [1, 3, 24, 0]
    assert limits.within(None, 5) == 5 and limits.within(5, 5) == 5 and limits.within(4, 5) == 4
