"""Tensors where they lie on disk."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cft_ray.errors import UserError
from cft_ray.models import stored
from cft_ray.models.stored import FLOAT_BYTES, json_of, same_content, stored_tensors


def test_tensors_are_found_where_they_lie(tmp_path):
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).view(2, 3),
        "a": torch.ones(4, dtype=torch.float16),
        "s": torch.tensor(2.5),
        "d": torch.ones(3, dtype=torch.float64),
        "g": torch.ones(5, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found = stored_tensors(tmp_path)
    assert {each.name for each in found} == set(tensors) and [each.offset for each in found] == sorted(
        each.offset for each in found
    )
    data = (tmp_path / "model.safetensors").read_bytes()
    for each in found:
        size = tensors[each.name].element_size()
        assert each.parameters == tensors[each.name].numel() and each.shape == tuple(tensors[each.name].shape)
        part = bytearray(data[each.offset : each.offset + each.parameters * size])
        assert torch.equal(torch.frombuffer(part, dtype=tensors[each.name].dtype).view(each.shape), tensors[each.name])
        assert size == FLOAT_BYTES[each.dtype]
    assert stored_tensors(tmp_path / "none") == []


@pytest.mark.parametrize("chunk", [1, 3, 16, 2**20])
def test_contents_are_compared_to_the_last_byte(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(stored, "_CHUNK", chunk)
    one = torch.arange(10, dtype=torch.float32)
    other = one.clone()
    other[-1] += 1
    first = one.clone()
    first[0] += 1
    tensors = {"one": one, "same": one.clone(), "other": other, "first": first, "half": one.half()}
    save_file(tensors | {"shape": one.clone().view(2, 5)}, tmp_path / "model.safetensors")
    found = {each.name: each for each in stored_tensors(tmp_path)}
    assert {name for name in found if same_content(found["one"], found[name])} == {"one", "same"}


def header(tmp_path: Path, entries: dict[str, Any], data: bytes = b"") -> Path:
    text = json.dumps(entries).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return tmp_path


def entry(last: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, last]}}


@pytest.mark.parametrize(
    ("entries", "data", "what"),
    [
        (entry(8), b"x" * 7, "is cut off: tensor w ends at byte"),
        (entry(4), b"x" * 8, "tensor w has 4 bytes, which do not fit its shape"),
        (entry(8, shape=(2, 2)), b"x" * 8, "tensor w has 8 bytes, which do not fit its shape"),
    ],
)
def test_files_that_do_not_hold_what_they_say(tmp_path, entries, data, what):
    with pytest.raises(UserError, match=what):
        stored_tensors(header(tmp_path, entries, data))


def test_a_file_as_short_as_it_may_be(tmp_path):
    assert len(stored_tensors(header(tmp_path, entry(8), b"x" * 8))) == 1
    assert stored_tensors(header(tmp_path, {})) == []
    assert [each.dtype for each in stored_tensors(header(tmp_path, entry(5, "I4"), b"x" * 5))] == [
        "I4"
    ]  # of types that are none of ours
    for content in (b"", b"1234567", struct.pack("<Q", 1) + b"{", struct.pack("<Q", 3) + b"{}", struct.pack("<Q", 2**40) + b"{}"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="its header is cut off"):
            stored_tensors(tmp_path)
    with pytest.raises(UserError, match="does not hold a JSON object"):
        json_of(Path("x"), b"[1]")


def test_a_header_may_be_as_large_as_the_format_says(tmp_path, monkeypatch):
    assert stored._HEADER_LIMIT == 100 * 2**20
    text = json.dumps({}).encode()
    monkeypatch.setattr(stored, "_HEADER_LIMIT", len(text))
    assert stored_tensors(header(tmp_path, {})) == []
    monkeypatch.setattr(stored, "_HEADER_LIMIT", len(text) - 1)
    with pytest.raises(UserError, match="cut off"):
        stored_tensors(tmp_path)


def test_an_index_names_what_is_there(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert {each.name: each.file.name for each in stored_tensors(tmp_path)} == {"a": "one.safetensors", "b": "two.safetensors"}
    for wrong, what in (
        ({}, "the index has no weight_map"),
        ({"weight_map": {}}, "the index has no weight_map"),
        ({"weight_map": [1]}, "the index has no weight_map"),
        ({"weight_map": {"a": "none.safetensors"}}, "the index names none.safetensors, which is not there"),
        ({"weight_map": {"a": "../one.safetensors"}}, "which is not there"),
        ({"weight_map": {"a": "two.safetensors"}}, "tensor a is not in two.safetensors"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=what) as raised:
            stored_tensors(tmp_path)
        assert raised.value.where == str(index)
