"""Which tensor of one model is compared with which of the other, and how its rows split into heads. Pure.

Models tuned from one base have the same tensors, with two exceptions. A tied output layer is stored or not as the saver
pleased: it is the embedding, whatever is stored, and is compared once where both tie it; where only one side does, its
embedding is compared with the other's output layer too. And a tuned model may have a larger vocabulary: of embedding and
output layer, the rows that both have are compared, and the others are counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cft_ray.drift.heads import HeadCounts, HeadSlice, decoder_layer, head_slices
from cft_ray.drift.weights import EMBEDDING, OUTPUT, StoredModel
from cft_ray.errors import UserError
from cft_ray.models.stored import StoredTensor


@dataclass(frozen=True)
class TensorPair:
    """Two tensors of the same width, and the rows that are compared."""

    name: str
    left: StoredTensor
    right: StoredTensor
    rows: int
    """product of all dimensions but the last; 1 for a vector"""
    columns: int
    heads: tuple[HeadSlice, ...] = ()
    """ascending and covering all rows; empty where the tensor has no heads, or they are not known"""
    rows_left_out: int = 0
    """rows that only one side has"""

    @property
    def layer(self) -> int | None:
        """Decoder block; None for embeddings and the like."""
        return decoder_layer(self.name)

    @property
    def projection(self) -> str:
        """The module's short name: q for ``…self_attn.q_proj.weight``, input_layernorm, embed_tokens."""
        parts = self.name.split(".")
        module = parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts[-1]
        return module.removesuffix("_proj")


def pair_tensors(left: StoredModel, right: StoredModel) -> list[TensorPair]:
    """The tensors of two models by name, in the order of the left model's files.

    Raises:
        UserError: a tensor that only one model has, or two of different shapes.
    """
    ours, theirs = _completed(left, right), _completed(right, left)
    theirs = _prefixed(theirs, ours)
    ours = _prefixed(ours, theirs)
    for model, own, other in ((left, theirs, ours), (right, ours, theirs)):
        if missing := [name for name in own if name not in other]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"lacks the tensor {missing[0]}{more}, which the other model has",
                where=str(model.folder),
                fix="compare two models of one architecture",
            )
    if not ours:
        raise UserError("holds no tensors", where=str(left.folder))
    counts = HeadCounts.of(left.config)
    if counts != HeadCounts.of(right.config):
        raise UserError(
            "the models divide their projections into other heads",
            where=f"{left.folder} and {right.folder}",
            fix="compare two models of one architecture",
        )
    return [_pair(name, tensor, theirs[name], left, right, counts) for name, tensor in ours.items()]


def _completed(model: StoredModel, other: StoredModel) -> Mapping[str, StoredTensor]:
    """A model's tensors under the names that the comparison uses; a tied output layer stands where the other side has one."""
    if not model.ties:
        return model.tensors
    tensors = {name: tensor for name, tensor in model.tensors.items() if name != OUTPUT}
    if OUTPUT in other.tensors and not other.ties:
        assert model.embedding is not None
        tensors[OUTPUT] = model.embedding
    return tensors


def _prefixed(ours: Mapping[str, StoredTensor], theirs: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Our tensors by their names: some published files leave out the first part that transformers puts before (GPT-2)."""
    if ours.keys() == theirs.keys():
        return ours
    for prefix in {name.partition(".")[0] + "." for name in theirs}:
        renamed = {name if name in theirs else prefix + name: tensor for name, tensor in ours.items()}
        if renamed.keys() == theirs.keys():
            return renamed
    return ours


def _pair(
    name: str, ours: StoredTensor, theirs: StoredTensor, left: StoredModel, right: StoredModel, counts: HeadCounts | None
) -> TensorPair:
    rows, columns = _flat(ours.shape)
    if ours.shape == theirs.shape:
        return TensorPair(name, ours, theirs, rows, columns, tuple(head_slices(name, rows, counts)))
    other_rows, other_columns = _flat(theirs.shape)
    if columns == other_columns and name.endswith((OUTPUT, EMBEDDING)):
        shared = min(rows, other_rows)
        return TensorPair(name, ours, theirs, shared, columns, rows_left_out=max(rows, other_rows) - shared)
    raise UserError(
        f"tensor {name} is {list(ours.shape)} in one model and {list(theirs.shape)} in the other",
        where=f"{left.folder} and {right.folder}",
        fix="compare two models of one architecture",
    )


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    columns = shape[-1] if shape else 1
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows, columns
