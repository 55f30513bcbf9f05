"""Which rows and which memory a step takes: rows without a target, ranks without rows, the head in pieces."""

from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig

from cft_ray.grid.settings import Template, TrainingSettings
from cft_ray.training import attention, loss
from cft_ray.training.collate import collate
from cft_ray.training.examples import Examples, encode
from cft_ray.training.loss import Head, SummedLoss
from cft_ray.training.model import byte_tokenizer

TOKENIZER = byte_tokenizer(512)


def encoded(*pairs: tuple[str, str], **training: Any) -> Examples:
    columns = {"system": "", "input": "", "language": "en"}
    rows = [{"id": str(n), "instruction": ask, "output": answer, **columns} for n, (ask, answer) in enumerate(pairs)]
    return encode(pa.Table.from_pylist(rows), Template(name="plain"), TOKENIZER, TrainingSettings(**training), where="test")


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def model(padding: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, intermediate_size=32, vocab_size=2048
    )
    how = attention.NAME if padding == "free" else "sdpa"
    return AutoModelForCausalLM.from_config(config, attn_implementation=how)


def test_a_row_without_a_target_leaves_its_neighbours():
    """The middle one's prompt fills the length: it alone goes, wherever it stands in its batch."""
    examples = encoded(("a", "b"), ("a" * 50, "b"), ("c", "d"), max_length=20, long_rows="truncate")
    assert examples.places.tolist() == [0, 2] and len(examples) == 2
    assert [TOKENIZER.decode(examples.ids(n)[examples.prompts[n] : -1]) for n in (0, 1)] == ["b", "d"]
    assert (examples.counts.rows, examples.counts.used, examples.counts.without_target) == (3, 2, 1)


@pytest.mark.parametrize("padding", ["free", "padded"])
def test_a_rank_without_rows_makes_a_forward_pass_worth_nothing(padding):
    batch = collate(encoded(("a", "b")), [], padding=padding, pad_id=2)
    assert batch.input_ids.tolist() == [[2]] and batch.position_ids.tolist() == [[0]] and batch.tokens == 0
    assert (batch.layout is None, batch.mask is None) == (padding == "padded", padding == "free")
    assert batch.mask is None or batch.mask.tolist() == [[1]]
    net = model(padding)
    total = SummedLoss(net, net)(batch)
    total.backward()
    assert total.item() == 0.0
    grads = [parameter.grad for parameter in net.parameters()]
    assert all(grad is None or not grad.any() for grad in grads) and any(grad is not None for grad in grads)


def test_a_step_never_holds_all_logits(monkeypatch):
    """The head is in pieces: its type, and the largest tensor of a step, which whole logits would be."""
    net = model("free")
    wrapped = SummedLoss(net, net)
    assert type(net.get_output_embeddings()) is Head
    batch = collate(encoded(("a" * 20, "b" * 300)), [0], padding="free", pad_id=2)
    whole = len(batch.labels) * 2048
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 16 * 2048)
    with Largest() as seen:
        wrapped(batch).backward()
    assert seen.numbers <= 2048 * 32 < whole / 4  # the head's weight, twice a piece of the logits
