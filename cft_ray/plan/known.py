"""Public facts that estimates rest on: shapes of models, sizes of data sets and benchmarks, peaks of devices.

What is not here and cannot be read off a grid is *unknown*, and an estimate that needs it says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cft_ray.data.toy import TOY, generate
from cft_ray.grid.settings import ScratchModel
from cft_ray.plan.config import local_config
from cft_ray.plan.specs import Checkpoint

BYTE_VOCABULARY = 259
"""Bytes and three marks: the tokenizer of models trained from scratch."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like decoder (RMSNorm, rotary positions, gated MLP, grouped-query attention, no biases)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    head_size: int
    tied: bool = False
    """input and output embeddings are one matrix"""

    @property
    def block_parameters(self) -> int:
        """Of one decoder block: attention, MLP and its two norms."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Of one embedding matrix."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All: blocks, embeddings, last norm."""
        return self.layers * self.block_parameters + (1 if self.tied else 2) * self.embedding_parameters + self.hidden


_MISTRAL_7B = Shape(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocabulary=32000, head_size=128)
_LLAMA_3_8B = Shape(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14336, vocabulary=128256, head_size=128)

SHAPES: dict[str, Shape] = {
    "mistralai/Mistral-7B-v0.1": _MISTRAL_7B,
    "mistralai/Mistral-7B-Instruct-v0.1": _MISTRAL_7B,
    "mistralai/Mistral-7B-Instruct-v0.2": _MISTRAL_7B,
    "meta-llama/Meta-Llama-3-8B": _LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3_8B,
}
"""hub id -> shape (the models' own config.json)."""


@dataclass(frozen=True)
class Size:
    """How much text a data set holds; None: unknown."""

    rows: float | None = None
    characters: float | None = None
    """mean of a row, prompt and answer together"""
    tokens: float | None = None
    """mean of a row, where the grid says it"""


DATASETS: dict[str, Size] = {
    # Rows: the hub's. Characters: Alpaca's measured over all rows; MultiAlpaca's over its es, ja and pt rows.
    "tatsu-lab/alpaca": Size(52_002, 353),
    "DAMO-NLP-MT/multialpaca": Size(132_701, 262),
    "Open-Orca/OpenOrca": Size(4_233_923, None),
}
"""hub id -> size."""

ITEMS: dict[str, tuple[int, float, int]] = {
    # (items of all its tasks, mean characters of an item's requests together, new tokens per item). Characters were
    # measured on the public data; multiple choice repeats the question with each of its four answers.
    "ifeval": (541, 211, 1280),
    "alpaca_eval": (805, 165, 512),
    "mmlu": (14_042, 4 * 445, 0),
    "hellaswag": (10_042, 4 * (207 + 136), 0),
    "xquad": (11 * 1190, 821, 32),
    "mlqa": (30_655, 825, 32),
}
"""benchmark -> how much it asks."""

PEAK_FLOPS: dict[str, float] = {
    "A100-40GB": 312e12,
    "A100-80GB": 312e12,
    "A10G": 70e12,
    "L4": 121e12,
    "L40S": 362e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
"""device -> dense bf16 FLOP/s of its tensor cores (NVIDIA's data sheets, without sparsity)."""

MEMORY_BYTES: dict[str, float] = {
    "A100-40GB": 40e9,
    "A100-80GB": 80e9,
    "A10G": 24e9,
    "L4": 24e9,
    "L40S": 48e9,
    "H100": 80e9,
    "H200": 141e9,
    "B200": 180e9,
}
"""device -> memory as sold."""


def toy_size(name: str, languages: Sequence[str], rows: int | None) -> Size:
    """The size of a toy data set; characters are measured on its first rows, which stand for the others."""
    toy = TOY.get(name)
    if toy is None:
        return Size()
    sample = list(generate(name, languages[0], 50))
    characters = sum(len(row[column]) for row in sample for column in ("system", "instruction", "input", "output"))
    return Size((rows or toy.rows) * len(languages), characters / len(sample))


def scratch_shape(model: ScratchModel) -> Shape:
    """The shape of a model that the grid describes."""
    return Shape(
        layers=model.layers,
        hidden=model.hidden_size,
        heads=model.heads,
        kv_heads=model.kv_heads,
        intermediate=model.intermediate_size,
        vocabulary=BYTE_VOCABULARY,
        head_size=model.hidden_size // model.heads,
    )


def checkpoint_shape(checkpoint: Checkpoint) -> Shape | None:
    """The shape of a named checkpoint: of a known hub id, or read off a local folder's ``config.json``; else None."""
    if checkpoint.hub is not None:
        return SHAPES.get(checkpoint.hub)
    values = local_config(checkpoint.path) if checkpoint.path else None
    if values is None:
        return None
    try:
        heads = values["num_attention_heads"]
        return Shape(
            layers=values["num_hidden_layers"],
            hidden=values["hidden_size"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            intermediate=values["intermediate_size"],
            vocabulary=values["vocab_size"],
            head_size=values.get("head_dim") or values["hidden_size"] // heads,
            tied=values.get("tie_word_embeddings", False),
        )
    except (KeyError, TypeError, ZeroDivisionError):  # another family of models: its parts are named and sized in another way
        return None
