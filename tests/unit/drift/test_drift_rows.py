"""What is said of each tensor and head beside its norm, in two models of a few tensors made here."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cft_ray.drift.measure import measure_drift

CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8}
SHAPES = {
    "model.embed_tokens.weight": (10, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.1.self_attn.k_proj.weight": (4, 8),
    "model.layers.1.mlp.down_proj.weight": (8, 6),
    "model.layers.1.input_layernorm.weight": (8,),
    "model.layers.1.mixer.A_log": (3,),
    "model.norm.weight": (8,),
    "scale": (),
}


def model(folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return tensors


def test_each_tensor_is_named_placed_and_counted(tmp_path):
    left, right = model(tmp_path / "l", 0), model(tmp_path / "r", 1, torch.bfloat16)
    found = measure_drift(tmp_path / "l", tmp_path / "r")
    rows = {row["name"]: row for row in found.tensors.to_pylist()}
    assert set(rows) == set(SHAPES)
    assert {name: (row["layer"], row["projection"]) for name, row in rows.items()} == {
        "model.embed_tokens.weight": (None, "embed_tokens"),
        "model.layers.0.self_attn.q_proj.weight": (0, "q"),
        "model.layers.0.self_attn.q_proj.bias": (0, "q"),
        "model.layers.1.self_attn.k_proj.weight": (1, "k"),
        "model.layers.1.mlp.down_proj.weight": (1, "down"),
        "model.layers.1.input_layernorm.weight": (1, "input_layernorm"),
        "model.layers.1.mixer.A_log": (1, "A_log"),
        "model.norm.weight": (None, "norm"),
        "scale": (None, "scale"),
    }
    for name, row in rows.items():
        change = left[name].double() - right[name].double()
        assert (row["rows"] * row["columns"], row["parameters"]) == (change.numel(), change.numel())
        assert row["columns"] == (SHAPES[name][-1] if SHAPES[name] else 1) and row["dtype"] == "F32, BF16"
        wanted = [change.norm(), left[name].double().norm(), right[name].double().norm(), change.abs().max()]
        assert [row[key] for key in ("l2", "l2_left", "l2_right", "max_abs")] == pytest.approx(
            torch.stack(wanted).tolist(), rel=1e-6
        )
    whole = found.summary
    assert (whole["tensors"], whole["parameters"], whole["rows_left_out"]) == (9, sum(t.numel() for t in left.values()), 0)
    assert whole["max_abs"] == pytest.approx(max(row["max_abs"] for row in rows.values()))


def test_heads_are_those_of_weights_with_their_own_sizes(tmp_path):
    model(tmp_path / "l", 0)
    model(tmp_path / "r", 1)
    heads = measure_drift(tmp_path / "l", tmp_path / "r").heads.to_pylist()
    assert [(row["layer"], row["projection"], row["head"], row["parameters"]) for row in heads] == [
        *((0, "q", head, 2 * 8) for head in range(4)),
        *((1, "k", head, 2 * 8) for head in range(2)),
    ]


def test_rows_of_the_table_for_the_model_its_layers_modules_and_heads(tmp_path):
    left, right = model(tmp_path / "l", 0), model(tmp_path / "r", 1)
    rows = measure_drift(tmp_path / "l", tmp_path / "r").similarity("one", "other")
    values = {(row["measure"], row["layer"], row["projection"], row["head"]): row["value"] for row in rows}
    assert len(values) == len(rows) and {(row["left"], row["right"]) for row in rows} == {("one", "other")}
    norms = {name: (left[name] - right[name]).double().norm().item() for name in SHAPES}
    sizes = {name: left[name].numel() for name in SHAPES}

    def wanted(*names: str) -> tuple[float, float, float]:
        l2 = sum(norms[name] ** 2 for name in names) ** 0.5
        return sum(norms[name] for name in names) / len(names), (l2**2 / sum(sizes[name] for name in names)) ** 0.5, l2

    def found(layer: int | None, projection: str | None) -> tuple[float, ...]:
        return tuple(values[measure, layer, projection, None] for measure in ("mpd", "rms", "l2"))

    first = [name for name in SHAPES if ".layers.1." in name]
    assert found(None, None) == pytest.approx(wanted(*SHAPES), rel=1e-6)
    assert found(1, None) == pytest.approx(wanted(*first), rel=1e-6)
    assert found(0, "q") == pytest.approx(wanted(*(name for name in SHAPES if "q_proj" in name)), rel=1e-6)
    assert found(None, "norm") == pytest.approx(wanted("model.norm.weight"), rel=1e-6)
    groups = {key[1:] for key in values}
    assert groups == {
        *((None, None, None), (0, None, None), (1, None, None)),
        *((None, name, None) for name in ("embed_tokens", "norm", "scale")),
        *((0, "q", None), (1, "k", None), (1, "down", None), (1, "input_layernorm", None), (1, "A_log", None)),
        *((0, "q", head) for head in range(4)),
        *((1, "k", head) for head in range(2)),
    }
