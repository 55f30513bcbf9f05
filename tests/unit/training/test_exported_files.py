"""A model from scratch, and the files of an export."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from cft_ray.errors import StageFailed
from cft_ray.grid.settings import ScratchModel
from cft_ray.models.architectures import tiny_model
from cft_ray.training import export, group
from cft_ray.training.model import create


@pytest.mark.parametrize("architecture", ["mistral", "llama"])
def test_a_model_from_scratch(tmp_path, architecture):
    shape = ScratchModel(
        architecture=architecture, hidden_size=64, layers=3, heads=2, kv_heads=1, intermediate_size=96, max_positions=77
    )
    folder = create(shape, 5, tmp_path / "a")
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (config.model_type, config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
        architecture,
        64,
        3,
        2,
    )
    assert (config.num_key_value_heads, config.head_dim, config.intermediate_size, config.max_position_embeddings) == (
        1,
        32,
        96,
        77,
    )
    assert (config.vocab_size, len(tokenizer), config.tie_word_embeddings, tokenizer.model_max_length) == (259, 259, False, 77)
    assert (
        [config.bos_token_id, config.eos_token_id, config.pad_token_id]
        == [0, 1, 2]
        == tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<pad>"])
    )
    assert getattr(config, "sliding_window", None) is None
    text = "Grüße </s> 日本\n  x"
    ids = tokenizer(text).input_ids
    assert ids[0] == 0 and tokenizer.decode(ids, skip_special_tokens=False) == "<s>" + text
    same, other = (create(shape, seed, tmp_path / name) for seed, name in ((5, "b"), (6, "c")))
    contents = [(each / "model.safetensors").read_bytes() for each in (folder, same, other)]
    assert contents[0] == contents[1] != contents[2]


def test_drawing_weights_leaves_other_random_numbers_alone(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    create(ScratchModel(layers=1, hidden_size=64, heads=2, kv_heads=1, intermediate_size=32), 0, tmp_path)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_exported(tmp_path, wrong):
    model: Any = tiny_model("llama")
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 2][:7]
    for name in names:
        model.get_parameter(name).data[0, 0] = wrong
    model.config.save_pretrained(tmp_path / "side")
    with group.joined(), pytest.raises(StageFailed) as raised:
        export.write(export.gathered_parameters(model), model, tmp_path / "side", tmp_path / "model")
    assert (
        str(raised.value)
        == f"the trained weights are no numbers: {', '.join(names[:5])} and 7 in all; lower training.learning_rate"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["side"]


def test_an_export_replaces_what_was_there_and_is_readable_by_others(tmp_path):
    import os
    import stat

    model: Any = tiny_model("llama")
    model.config.save_pretrained(tmp_path / "side")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("x")
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "left").write_text("x")
    before = os.umask(0o022)
    try:
        with group.joined():
            export.write(export.gathered_parameters(model), model, tmp_path / "side", tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    assert stat.S_IMODE((tmp_path / "model" / "model.safetensors").stat().st_mode) == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "side"]


def test_every_rank_hears_what_is_wrong(monkeypatch, tmp_path):
    model: Any = tiny_model("llama")
    model.config.save_pretrained(tmp_path / "side")

    def broadcast(problem: list[str | None], src: int) -> None:
        assert src == 0
        problem[0] = "the words of the first rank"

    monkeypatch.setattr(export.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(export.distributed, "broadcast_object_list", broadcast)
    with pytest.raises(StageFailed, match="the words of the first rank"):
        export.write(export.gathered_parameters(model), model, tmp_path / "side", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["side"]
