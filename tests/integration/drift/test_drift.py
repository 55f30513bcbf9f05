"""Norms between two checkpoints, against a computation that loads both; and what is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from alone import Alone
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Phi3Config

from cft_ray.drift.measure import measure_drift
from cft_ray.errors import UserError
from cft_ray.plan.specs import Checkpoint, DriftSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages import drift as drift_stage

HEADS, KV_HEADS, SIZE, LAYERS = 4, 2, 16, 3
SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model_of(seed: int, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(**{**SHAPE, "head_dim": SIZE, "attention_bias": True, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def saved(model: Any, folder: Path, shard: str = "50GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def norm(values: torch.Tensor) -> float:
    return values.double().norm().item()


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return model_of(0), model_of(1, torch.bfloat16)


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory) -> tuple[Path, Path]:
    """Left in float32 shards, right in one bfloat16 file."""
    root = tmp_path_factory.mktemp("pair")
    left, right = saved(models[0], root / "left", "40KB"), saved(models[1], root / "right")
    assert (left / "model.safetensors.index.json").exists()
    return left, right


@pytest.mark.parametrize("threads", [1, 3])
def test_tensor_norms_and_mpd_equal_those_of_loaded_models(models, folders, threads):
    drift = measure_drift(*folders, threads=threads)
    left, right = (dict(model.named_parameters()) for model in models)
    found = {row["name"]: row for row in drift.tensors.to_pylist()}
    assert found.keys() == left.keys()
    for name, row in found.items():
        difference = left[name].double() - right[name].double()
        assert row["l2"] == pytest.approx(norm(difference), rel=1e-6)
        assert row["l2_left"] == pytest.approx(norm(left[name]), rel=1e-6)
        assert row["l2_right"] == pytest.approx(norm(right[name]), rel=1e-6)
        assert row["max_abs"] == pytest.approx(difference.abs().max().item(), rel=1e-6)
        assert (row["parameters"], row["dtype"]) == (difference.numel(), "F32, BF16")
    norms = [norm(left[name].double() - right[name].double()) for name in left]
    everything = torch.cat([(left[name].double() - right[name].double()).flatten() for name in left])
    assert drift.summary["mpd"] == pytest.approx(sum(norms) / len(norms), rel=1e-6)
    assert drift.summary["l2"] == pytest.approx(norm(everything), rel=1e-6)
    assert drift.summary["rms"] == pytest.approx(everything.square().mean().sqrt().item(), rel=1e-6)


def test_head_norms_equal_those_of_loaded_models(models, folders):
    heads = measure_drift(*folders).heads.to_pylist()
    assert len(heads) == LAYERS * (HEADS + 2 * KV_HEADS)
    for row in heads:
        slices = [
            getattr(model.model.layers[row["layer"]].self_attn, f"{row['projection']}_proj").weight.double()[
                row["head"] * SIZE : (row["head"] + 1) * SIZE
            ]
            for model in models
        ]
        assert row["l2"] == pytest.approx(norm(slices[0] - slices[1]), rel=1e-6)
        assert row["l2_right"] == pytest.approx(norm(slices[1]), rel=1e-6)


def test_a_stacked_projection_is_split_into_its_heads(tmp_path):
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(Phi3Config(**SHAPE)))
    heads = measure_drift(*(saved(model, tmp_path / str(n)) for n, model in enumerate(models))).heads.to_pylist()
    size = 48 // HEADS
    change = (models[0].model.layers[1].self_attn.qkv_proj.weight - models[1].model.layers[1].self_attn.qkv_proj.weight).double()
    (value,) = [row["l2"] for row in heads if (row["layer"], row["projection"], row["head"]) == (1, "v", 1)]
    start = (HEADS + KV_HEADS + 1) * size
    assert value == pytest.approx(norm(change[start : start + size]), rel=1e-6)


def test_pieces_and_chunks_add_up(tmp_path, monkeypatch):
    """A tensor larger than a chunk, of a length that divides by nothing; one norm in float32 would be off by 1e-4."""
    from cft_ray.drift import norms

    monkeypatch.setattr(norms, "_PIECE", 300_001)
    for name, value in (("left", 1.1e-3), ("right", 1e-4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"w": torch.full((1009, 1013), value), "empty": torch.zeros(0)}, tmp_path / name / "model.safetensors")
    seen = []
    drift = measure_drift(
        tmp_path / "left", tmp_path / "right", threads=2, progress=lambda done, total: seen.append((done, total))
    )
    change = torch.tensor(1.1e-3).double() - torch.tensor(1e-4).double()
    assert drift.summary["l2"] == pytest.approx((1009 * 1013) ** 0.5 * change.item(), rel=2e-7)
    assert seen[-1] == (1009 * 1013, 1009 * 1013)
    assert drift.heads.num_rows == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_and_huge_weights(tmp_path, dtype):
    """Squares that float32 cannot hold are summed in float64."""
    large = {torch.float16: 6e4, torch.float64: 1e30}[dtype]
    values = {"left": torch.full((50, 70), large, dtype=dtype), "right": torch.full((50, 70), -1e25)}
    for name, tensor in values.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"w": tensor}, tmp_path / name / "model.safetensors")
    expected = norm(values["left"].double() - values["right"].double())
    assert measure_drift(tmp_path / "left", tmp_path / "right").summary["l2"] == pytest.approx(expected, rel=1e-6)


def test_a_model_does_not_differ_from_itself(folders):
    summary = measure_drift(folders[0], folders[0]).summary
    assert (summary["mpd"], summary["l2"], summary["max_abs"]) == (0, 0, 0)


def test_a_tied_output_layer_is_the_embedding(tmp_path):
    tied, free = model_of(0, tie_word_embeddings=True), model_of(1)
    drift = measure_drift(saved(tied, tmp_path / "tied"), saved(free, tmp_path / "free"))
    (row,) = [row for row in drift.tensors.to_pylist() if row["name"] == "lm_head.weight"]
    assert row["l2"] == pytest.approx(norm(tied.model.embed_tokens.weight.double() - free.lm_head.weight.double()), rel=1e-6)
    both = measure_drift(tmp_path / "tied", saved(model_of(2, tie_word_embeddings=True), tmp_path / "tied2"))
    assert "lm_head.weight" not in both.tensors["name"].to_pylist()

    weights = load_file(tmp_path / "tied2" / "model.safetensors")  # a saver that writes what is tied
    again = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": again}, tmp_path / "tied2" / "model.safetensors")
    for pair in (("tied", "tied2"), ("tied2", "tied")):
        assert measure_drift(*(tmp_path / name for name in pair)).summary == pytest.approx(both.summary)
    again[-1, -1] += 1  # nobody can know which of the two is meant
    save_file(weights | {"lm_head.weight": again}, tmp_path / "tied2" / "model.safetensors")
    for left, right in (("tied", "tied2"), ("tied2", "tied")):
        refused(tmp_path / left, tmp_path / right, r"tie_word_embeddings, but lm_head\.weight")


def test_files_without_the_first_part_of_their_names(tmp_path):
    """GPT-2 lies on the hub without `transformer.`, and is exported with it."""
    small: dict[str, Any] = {"vocab_size": 40, "n_embd": 48, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    folders = [saved(AutoModelForCausalLM.from_config(GPT2Config(**small)), tmp_path / name) for name in ("bare", "whole")]
    expected = measure_drift(*folders)
    weights = load_file(folders[0] / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    assert bare.keys().isdisjoint(weights)
    save_file(bare, folders[0] / "model.safetensors")
    for pair in (folders, folders[::-1]):
        found = measure_drift(*pair)
        assert found.summary == pytest.approx(expected.summary)
        assert {row["layer"] for row in found.tensors.to_pylist()} == {row["layer"] for row in expected.tensors.to_pylist()}


def test_of_different_vocabularies_the_shared_rows_count(tmp_path):
    small, large = model_of(0), model_of(1, vocab_size=43)
    drift = measure_drift(saved(small, tmp_path / "small"), saved(large, tmp_path / "large"))
    rows = {row["name"]: row for row in drift.tensors.to_pylist()}
    change = small.lm_head.weight.double() - large.lm_head.weight.double()[:40]
    assert rows["lm_head.weight"]["l2"] == pytest.approx(norm(change), rel=1e-6)
    assert (rows["lm_head.weight"]["rows"], drift.summary["rows_left_out"]) == (40, 6)


# What is refused


def refused(left: Path, right: Path, what: str) -> UserError:
    with pytest.raises(UserError, match=what) as caught:
        measure_drift(left, right)
    return caught.value


def test_other_architectures(tmp_path, folders):
    refused(folders[0], saved(model_of(0, attention_bias=False), tmp_path / "unbiased"), "lacks the tensor")
    refused(folders[0], saved(model_of(0, intermediate_size=80), tmp_path / "wide"), r"is \[72, 48\] in one model")
    refused(folders[0], saved(model_of(0, num_hidden_layers=4), tmp_path / "deep"), "lacks the tensor")
    changed = saved(model_of(0), tmp_path / "heads") / "config.json"
    changed.write_text(json.dumps(json.loads(changed.read_text()) | {"num_attention_heads": 8, "head_dim": 8}))
    refused(folders[0], changed.parent, "other heads")


def test_weights_that_are_not_numbers(tmp_path, folders):
    for number, value in enumerate((float("nan"), float("inf"))):
        model = model_of(0)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 5] = value
        broken = saved(model, tmp_path / str(number))
        for pair in ((broken, folders[0]), (folders[0], broken)):
            error = refused(*pair, "layers.1.mlp.up_proj.weight holds weights that are not finite")
            assert str(broken) in (error.where or "")


def test_files_that_are_missing_or_cut_off(tmp_path, folders):
    whole = saved(model_of(0), tmp_path / "cut")
    file = whole / "model.safetensors"
    content = file.read_bytes()
    for length in (len(content) - 1, 200, 4, 0):
        file.write_bytes(content[:length])
        assert str(file) in (refused(folders[0], whole, "cut off").where or "")
    file.write_bytes(struct.pack("<Q", 8) + b"notjson!")
    refused(whole, folders[0], "JSON")
    file.unlink()
    refused(whole, folders[0], "neither model.safetensors nor")
    (whole / "config.json").unlink()
    refused(whole, folders[0], "config.json")


def test_an_index_that_does_not_fit(tmp_path, folders):
    folder = saved(model_of(0), tmp_path / "sharded", "40KB")
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    shards = sorted(set(good["weight_map"].values()))
    moved = {**good["weight_map"], "lm_head.weight": next(s for s in shards if s != good["weight_map"]["lm_head.weight"])}
    index.write_text(json.dumps({**good, "weight_map": moved}))
    refused(folder, folders[0], "lm_head.weight is not in")
    index.write_text(json.dumps({**good, "weight_map": {**good["weight_map"], "x": "../elsewhere.safetensors"}}))
    refused(folder, folders[0], "elsewhere")
    index.write_text("{}")
    refused(folder, folders[0], "weight_map")
    index.write_text(json.dumps(good))
    (folder / shards[1]).unlink()
    refused(folder, folders[0], shards[1])


def test_quantised_weights(tmp_path, folders):
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": torch.zeros(3, 3, dtype=torch.int8)}, tmp_path / "model.safetensors")
    refused(tmp_path, folders[0], "I8")


# The stage


@pytest.fixture
def context(folders, tmp_path) -> Alone:
    spec = DriftSpec(checkpoints={"right": Checkpoint(hub="org/base", revision="abc")})
    stage = Stage(spec, {"left": "f" * 64}, resources=Resources(cpus=1))
    return Alone(tmp_path, stage, models=dict(zip(("left", "right"), folders, strict=True)))


def test_progress_ends_at_the_number_of_parameters(context):
    found = drift_stage.compare(context)
    assert context.shown[-1]["done"] == context.shown[-1]["total"] == found.summary["parameters"]


def test_the_stage_writes_its_tables(context, folders):
    outputs = drift_stage.run(context)
    assert outputs == measure_drift(*folders).summary
    heads = pl.read_parquet(context.output / "heads.parquet")
    assert len(heads) == LAYERS * (HEADS + 2 * KV_HEADS)
    similarity = pl.read_parquet(context.output / "tables" / "similarity.parquet")
    assert set(similarity["left"]) == {"f" * 64}
    assert set(similarity["right"]) == {"org/base@abc"}
    key = ["measure", "layer", "projection", "head"]
    assert similarity.select(key).n_unique() == len(similarity)
    whole = similarity.filter(pl.all_horizontal(pl.col("layer", "projection", "head").is_null()))
    assert dict(whole.select("measure", "value").iter_rows()) == {name: outputs[name] for name in ("mpd", "rms", "l2")}
    head = heads.row(5, named=True)
    found = similarity.filter(measure="l2", layer=head["layer"], projection=head["projection"], head=head["head"])
    assert found["value"].to_list() == [head["l2"]]
    layer = similarity.filter(pl.col("projection").is_null(), measure="l2", layer=1)["value"].item()
    tensors = pl.read_parquet(context.output / "tensors.parquet").filter(layer=1)
    assert layer == pytest.approx(sum(l2**2 for l2 in tensors["l2"]) ** 0.5)


def test_the_stage_measures_in_a_task_under_ray(context, folders, ray_session):
    assert drift_stage.run(context) == measure_drift(*folders).summary
    (folders[0].parent / "none").mkdir(exist_ok=True)
    broken = Alone(context.root / "second", context.stage, models={**context.models, "left": folders[0].parent / "none"})
    with pytest.raises(UserError, match="no config"):
        drift_stage.run(broken)
