"""Norms piece by piece, chunk by chunk and block by block, of tensors made here, against PyTorch's in float64."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cft_ray.drift import norms
from cft_ray.drift.heads import HeadCounts, decoder_layer, head_slices
from cft_ray.drift.measure import measure_drift
from cft_ray.drift.norms import Norms, stream_norms
from cft_ray.drift.pairs import TensorPair, pair_tensors
from cft_ray.drift.weights import StoredModel, stored_model
from cft_ray.errors import UserError


def saved(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> StoredModel:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return stored_model(folder)


def values(change: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> tuple[float, ...]:
    return (change.norm().item(), left.norm().item(), right.norm().item(), change.abs().max().item())


def of(found: Norms) -> tuple[float, ...]:
    return found.l2, found.l2_left, found.l2_right, found.max_abs


@pytest.mark.parametrize(("chunk", "block", "piece"), [(8, 4, 24), (16, 4, 16), (4, 4, 1000), (64, 16, 100)])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_whatever_the_size_of_pieces_chunks_and_blocks(tmp_path, monkeypatch, chunk, block, piece, dtype):
    monkeypatch.setattr(norms, "_CHUNK", chunk)
    monkeypatch.setattr(norms, "_BLOCK", block)
    monkeypatch.setattr(norms, "_PIECE", piece)
    torch.manual_seed(0)
    shapes = {"a": (13, 7), "b": (5,), "c": (), "d": (2, 3, 11)}
    left = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    right = {name: torch.randn(shape) for name, shape in shapes.items()}
    pairs = pair_tensors(saved(tmp_path / "l", left), saved(tmp_path / "r", right))
    told: list[tuple[int, int]] = []
    found = stream_norms(pairs, threads=2, progress=lambda done, total: told.append((done, total)))
    for pair, (whole, heads) in zip(pairs, found, strict=True):
        ours, theirs = left[pair.name].double(), right[pair.name].double()
        assert of(whole) == pytest.approx(values(ours - theirs, ours, theirs), rel=1e-5) and heads == []
    total = 13 * 7 + 5 + 1 + 2 * 3 * 11
    assert told[-1] == (total, total) and [done for done, _ in told] == sorted({done for done, _ in told})
    assert all(after - before <= piece for (before, _), (after, _) in zip([(0, 0), *told], told, strict=False))


def test_heads_that_are_larger_than_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(norms, "_PIECE", 16)
    monkeypatch.setattr(norms, "_CHUNK", 8)
    monkeypatch.setattr(norms, "_BLOCK", 4)
    torch.manual_seed(0)
    name, config = "model.layers.0.self_attn.q_proj.weight", {"num_attention_heads": 3, "hidden_size": 12}
    left, right = torch.randn(12, 12), torch.randn(12, 12)
    pairs = pair_tensors(saved(tmp_path / "l", {name: left}, **config), saved(tmp_path / "r", {name: right}, **config))
    [(whole, heads)] = stream_norms(pairs)
    assert of(whole) == pytest.approx(values(left - right, left, right), rel=1e-5)
    for head, each in enumerate(heads):
        ours, theirs = (side[4 * head : 4 * head + 4] for side in (left, right))
        assert of(each) == pytest.approx(values(ours - theirs, ours, theirs), rel=1e-5)
    assert len(heads) == 3


def test_squares_that_float32_cannot_hold_keep_their_largest_element(tmp_path, monkeypatch):
    monkeypatch.setattr(norms, "_CHUNK", 8)
    monkeypatch.setattr(norms, "_BLOCK", 4)
    left, right = torch.full((30,), 1e25), torch.full((30,), -2e25)
    right[3] = -5e25
    [(found, _)] = stream_norms(pair_tensors(saved(tmp_path / "l", {"w": left}), saved(tmp_path / "r", {"w": right})))
    assert of(found) == pytest.approx(values(left.double() - right.double(), left.double(), right.double()), rel=1e-6)


def test_torchs_own_threads_are_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", torch._C.set_num_threads)  # vLLM's CPU engine leaves one that does nothing
    before = torch.get_num_threads()
    pairs = pair_tensors(saved(tmp_path / "l", {"w": torch.ones(3)}), saved(tmp_path / "r", {"w": torch.ones(3)}))
    seen: list[int] = []
    torch.set_num_threads(2)
    try:
        stream_norms(pairs, progress=lambda done, total: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_file_that_became_shorter_is_named(tmp_path):
    pairs = pair_tensors(saved(tmp_path / "l", {"w": torch.ones(1000)}), saved(tmp_path / "r", {"w": torch.ones(1000)}))
    file = tmp_path / "r" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="ends inside tensor w") as raised:
        stream_norms(pairs)
    assert raised.value.where == str(file)


def test_norms_of_parts_together():
    parts = [Norms(3.0, 1.0, 2.0, 0.5), Norms(4.0, 1.0, 2.0, 1.5)]
    assert of(Norms.joined(parts)) == pytest.approx((5.0, 2**0.5, 8**0.5, 1.5))
    assert of(Norms.joined([])) == (0.0, 0.0, 0.0, 0.0)


def test_an_empty_model_and_one_with_more_tensors_are_refused(tmp_path):
    empty = saved(tmp_path / "empty", {})
    with pytest.raises(UserError, match="holds no tensors"):
        pair_tensors(empty, empty)
    one = saved(tmp_path / "one", {"a": torch.ones(2)})
    more = saved(tmp_path / "more", {each: torch.ones(2) for each in ("b", "a", "c")})
    for pair in ((one, more), (more, one)):
        with pytest.raises(UserError, match="lacks the tensor b and 1 more, which") as raised:
            pair_tensors(*pair)
        assert raised.value.where == str(tmp_path / "one")
    two = saved(tmp_path / "two", {each: torch.ones(2) for each in ("a", "b")})
    with pytest.raises(UserError, match="lacks the tensor b, which"):
        pair_tensors(one, two)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.up_proj.weight"])
def test_only_a_vocabulary_may_differ_in_size(tmp_path, name):
    sides = [saved(tmp_path / str(rows), {name: torch.ones(rows, 3)}) for rows in (4, 6)]
    for left, right in (sides, sides[::-1]):
        if name.endswith("up_proj.weight"):
            with pytest.raises(UserError, match=r"is \[[46], 3\] in one model and \[[46], 3\] in the other"):
                pair_tensors(left, right)
            continue
        [pair] = pair_tensors(left, right)
        assert (pair.rows, pair.columns, pair.rows_left_out) == (4, 3, 2)
        [row] = measure_drift(left.folder, right.folder).tensors.to_pylist()
        assert (row["parameters"], row["rows_left_out"]) == (12, 2)
    wide = saved(tmp_path / "wide", {name: torch.ones(4, 5)})
    with pytest.raises(UserError, match=r"is \[4, 3\] in one model and \[4, 5\]"):
        pair_tensors(sides[0], wide)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("a.b.q_proj.weight", "q"),
        ("a.norm.bias", "norm"),
        ("a.b.A_log", "A_log"),
        ("weight", "weight"),
        ("scale", "scale"),
        ("n.weight", "n"),
    ],
)
def test_the_short_name_of_a_module(tmp_path, name, module):
    tensor = saved(tmp_path / "m", {name: torch.ones(1)}).tensors[name]
    assert TensorPair(name, tensor, tensor, 1, 1).projection == module


def test_a_nested_configuration_counts_and_buffers_do_not(tmp_path):
    tensors = {"model.embed_tokens.weight": torch.ones(3, 2), "lm_head.weight": torch.ones(3, 2),
               "model.layers.0.rotary_emb.inv_freq": torch.ones(2)}  # fmt: skip
    tied = saved(tmp_path / "tied", tensors, text_config={"tie_word_embeddings": True})
    assert tied.ties and "model.layers.0.rotary_emb.inv_freq" not in tied.tensors
    assert not saved(tmp_path / "free", tensors, tie_word_embeddings=False).ties
    assert not saved(tmp_path / "bare", {"w": torch.ones(2)}, tie_word_embeddings=True).ties
    tensors["lm_head.weight"] = torch.zeros(3, 2)
    with pytest.raises(UserError, match=r"but lm_head\.weight and model\.embed_tokens\.weight differ"):
        saved(tmp_path / "wrong", tensors, tie_word_embeddings=True)


def test_names_without_a_beginning_and_blocks_of_all_kinds():
    counts = HeadCounts(2, 1, 3)
    assert [part.head for part in head_slices("0.attn.q_proj.weight", 6, counts)] == [0, 1]
    assert head_slices("0.attn.q_proj.weight", 6, None) == [] and head_slices("0.attn.k_proj.weight", 6, counts) == []
    assert [decoder_layer(f"{kind}.7.x") for kind in ("layers", "h", "blocks", "block", "experts")] == [7, 7, 7, 7, None]
    assert HeadCounts.of({"num_attention_heads": 3, "hidden_size": 100}) == HeadCounts(3, 3, 33)
    assert HeadCounts.of({"num_attention_heads": 3}) is None and HeadCounts.of({"hidden_size": 3}) is None
