"""A tiny model looked into: its parts, its limits, its logits, and what is refused."""

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft_ray.errors import UserError
from cft_ray.grid.settings import ScratchModel
from cft_ray.inference import model as looked
from cft_ray.inference.batches import by_length, padded, taken
from cft_ray.inference.model import LoadedModel, load, logits
from cft_ray.models.outputs import Outputs
from cft_ray.training.model import create

SHAPE = ScratchModel(layers=3, hidden_size=64, heads=2, kv_heads=1, intermediate_size=64, max_positions=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(create(SHAPE, 0, tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def model(folder) -> LoadedModel:
    return load(folder)


def test_its_parts_are_the_models_own(model, folder):
    causal = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert model.folder == folder and model.device == torch.device("cpu") and not model.causal.training
    assert model.causal.dtype == torch.float32 and [type(block).__name__ for block in model.blocks] == ["MistralDecoderLayer"] * 3
    assert [block.self_attn.layer_idx for block in model.blocks] == [0, 1, 2]  # pyright: ignore[reportAttributeAccessIssue]
    ids = torch.tensor([[0, 70, 80, 90, 1]])
    with torch.inference_mode():
        hidden = model.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(model.scores(hidden), causal(ids).logits[0], rtol=1e-4, atol=1e-5)
    model.check_head()


def test_its_type_is_the_checkpoints_only_where_told(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert load(str(tmp_path)).causal.dtype == torch.float32
    assert load(str(tmp_path), "bfloat16").causal.dtype == torch.bfloat16


@pytest.mark.parametrize(("asked", "limit"), [(10, 10), (95, 95), (96, 96), (97, 96), (10_000, 96)])
def test_it_reads_no_more_than_it_has_positions(model, asked, limit):
    assert model.positions == 96 and model.limit(asked) == limit


@pytest.mark.parametrize(("pad", "eos", "filled"), [(5, 7, 5), (None, 7, 7), (None, None, 0), (0, 7, 0), (None, [7, 8], 0)])
def test_room_is_filled_with_a_token_that_there_is(pad, eos, filled):
    tokenizer: Any = types.SimpleNamespace(pad_token_id=pad, eos_token_id=eos)
    assert LoadedModel("x", types.SimpleNamespace(), tokenizer, None, Outputs()).pad_id == filled  # pyright: ignore[reportArgumentType]


def test_another_way_to_keep_the_blocks_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.causal.config, "num_hidden_layers", 4)
    with pytest.raises(UserError, match="no list of 4 decoder blocks was found in MistralModel"):
        _ = model.blocks


def test_what_happens_after_the_head_is_refused_unless_it_is_known(model, monkeypatch):
    forward = type(model.causal).forward

    def with_logits(change):
        def changed(*arguments, **named):
            output = forward(*arguments, **named)
            output.logits = change(output.logits)
            return output

        return changed

    monkeypatch.setattr(type(model.causal), "forward", with_logits(lambda numbers: numbers * 0.5))
    with pytest.raises(UserError, match="MistralForCausalLM changes its head's output"):
        model.check_head()
    halved = LoadedModel(model.folder, model.causal, model.tokenizer, model.positions, Outputs(scale=0.5))
    halved.check_head()
    # More than the rounding of the type of the weights, at a single token.
    monkeypatch.setattr(type(model.causal), "forward", with_logits(lambda numbers: numbers + torch.eye(*numbers.shape[1:]) * 0.1))
    with pytest.raises(UserError):
        model.check_head()


def test_a_folder_without_a_tokenizer_is_named(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    for path, what in ((tmp_path / "bare", "cannot load the tokenizer"), (Path("nowhere"), "no such folder")):
        with pytest.raises(UserError, match=what) as raised:
            load(str(path))
        assert raised.value.where == str(path)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_a_head(bias, dtype):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 5, bias=bias, dtype=dtype)
    hidden = torch.randn(3, 8, dtype=dtype)
    found = logits(hidden, head)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head(hidden).float())
    if not bias:
        torch.testing.assert_close(logits(hidden, types.SimpleNamespace(weight=head.weight)), found)


@pytest.mark.parametrize(
    ("lengths", "tokens", "batches"),
    [
        ([], 10, []),
        ([5, 5], 10, [[0, 1]]),  # just as many as fit
        ([5, 5], 9, [[0], [1]]),
        ([2, 6, 4], 12, [[1, 2], [0]]),  # the room beside a shorter row counts
        ([2, 6, 4], 18, [[1, 2, 0]]),
        ([30, 1, 1], 10, [[0], [1, 2]]),  # a longer row is alone
        ([3, 3, 3], 1, [[0], [1], [2]]),
    ],
)
def test_batches_by_hand(lengths, tokens, batches):
    assert by_length(lengths, tokens) == batches


def test_padding_and_its_mask():
    assert padded([[1], [2, 3, 4]], 0).tolist() == [[1, 0, 0], [2, 3, 4]] and padded([[1]], 0).dtype == torch.int64
    assert taken([[1], [2, 3, 4]], 3).tolist() == [[True, False, False], [True, True, True]]


class _OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gpu_does_not_round_the_products_of_half_precision(monkeypatch, bias, dtype):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 5, bias=bias, dtype=dtype).requires_grad_(False)
    hidden = torch.randn(3, 8, dtype=dtype)
    asked: list[Any] = []

    def mm(left: torch.Tensor, right: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        asked.append(out_dtype)
        return torch.matmul(left.as_subclass(torch.Tensor).float(), right.float())

    monkeypatch.setattr(torch, "mm", mm)
    found = logits(hidden.as_subclass(_OnGpu), head)
    exact = hidden.double() @ head.weight.double().T + (head.bias.double() if bias else 0.0)
    tolerance = 1e-5 if dtype != torch.float32 else 1e-6
    torch.testing.assert_close(found.as_subclass(torch.Tensor).double(), exact, rtol=tolerance, atol=1e-5)
    assert asked == ([] if dtype == torch.float32 else [torch.float32]) and found.dtype == torch.float32


@pytest.mark.parametrize(
    ("on", "asked", "dtype"),
    [("cpu", "auto", "float32"), ("cuda", "auto", "auto"), ("cpu", "bfloat16", "bfloat16"), ("cuda", "float16", "float16")],
)
def test_a_model_goes_to_the_device_and_is_compared_there(folder, monkeypatch, on, asked, dtype):
    done: list[Any] = []

    class Causal:
        config = AutoModelForCausalLM.from_pretrained(folder).config

        def eval(self) -> "Causal":
            done.append("eval")
            return self

        def to(self, device: str) -> None:
            done.append(device)

    causal = Causal()
    monkeypatch.setattr(looked, "device", lambda: on)
    monkeypatch.setattr(looked.loading, "load", lambda where, dtype: (done.append((where, dtype)), causal)[1])
    monkeypatch.setattr(looked.function, "settle", lambda model, where: done.append((model, where)))
    found = load(folder, asked)
    assert done == [(folder, dtype), "eval", on, (causal, folder)] and found.causal is causal and found.positions == 96
