"""Freezing whole parameters and rows of parameters, exactly, also where ZeRO-3 has partitioned them.

What is frozen is written on the parameters themselves (``requires_grad``, ``frozen_rows``), so it can be read back from
the model that is trained.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from cft_ray.drift.heads import HeadCounts, HeadSlice, decoder_layer, head_slices
from cft_ray.errors import UserError

Rows = tuple[tuple[int, int], ...]
"""(first row, row after the last), ascending, not touching"""


def layer_count(model: torch.nn.Module) -> int:
    """Decoder blocks of a model, by its parameters' names.

    Raises:
        UserError: there are none.
    """
    layers = {layer for name, _ in model.named_parameters() if (layer := decoder_layer(name)) is not None}
    if not layers:
        raise UserError(f"{type(model).__name__} has no numbered decoder blocks", fix="use a decoder-only Hugging Face model")
    return max(layers) + 1


def freeze_blocks(model: torch.nn.Module, layers: Iterable[int]) -> None:
    """Freeze every parameter of the given decoder blocks."""
    chosen = set(layers)
    for name, parameter in model.named_parameters():
        if decoder_layer(name) in chosen:
            parameter.requires_grad_(False)


def freeze_heads(model: torch.nn.Module, choose: Callable[[HeadSlice], bool]) -> None:
    """Freeze the rows (weights, and biases where there are any) of the heads that ``choose`` says yes to.

    Args:
        model: a Hugging Face decoder, its parameters whole or partitioned by ZeRO-3.
        choose: called once a head and tensor.

    Raises:
        UserError: the architecture's query, key and value rows are not known.
    """
    counts = HeadCounts.of(model.config.to_dict())  # type: ignore[union-attr, operator]
    known = False
    for name, parameter in model.named_parameters():
        rows = _rows(parameter)
        slices = head_slices(name, rows, counts)
        known = known or bool(slices)
        if frozen := _merged([(part.start, part.stop) for part in slices if choose(part)]):
            _freeze_rows(parameter, frozen, rows)
    if not known:
        raise UserError(
            f"the query, key and value heads of {type(model).__name__} are not known",
            fix="use LF_H2 with granularity: block, or LF_H1",
        )


def fractions(model: torch.nn.Module) -> dict[str, float]:
    """``frozen_fraction`` and ``trainable_fraction`` of a prepared model's parameters, tied ones counted once."""
    total = frozen = 0
    for _, parameter in model.named_parameters():
        shape = _shape(parameter)
        total += shape.numel()
        frozen += sum(stop - start for start, stop in frozen_rows(parameter)) * shape[1:].numel()
    return {"frozen_fraction": frozen / total, "trainable_fraction": 1 - frozen / total}


def frozen_facts(model: torch.nn.Module) -> dict[str, Any]:
    """What is frozen in a prepared model.

    Returns:
        `fractions`, ``frozen_blocks`` (numbers of the decoder blocks that are frozen whole) and ``frozen_heads``
        (``{"q": {head: [layers]}, …}`` outside of those, heads as text).
    """
    blocks: dict[int, bool] = {}
    for name, parameter in model.named_parameters():
        if (layer := decoder_layer(name)) is not None:
            blocks[layer] = blocks.get(layer, True) and not parameter.requires_grad
    whole = [layer for layer in sorted(blocks) if blocks[layer]]
    return {**fractions(model), "frozen_blocks": whole, "frozen_heads": _frozen_heads(model, set(whole))}


def frozen_rows(parameter: torch.nn.Parameter) -> Rows:
    """The rows of a parameter that do not train: all of them where it needs no gradient."""
    if not parameter.requires_grad:
        return ((0, _rows(parameter)),)
    return getattr(parameter, "frozen_rows", ())


def _frozen_heads(model: torch.nn.Module, blocks: set[int]) -> dict[str, dict[str, list[int]]]:
    counts = HeadCounts.of(model.config.to_dict())  # type: ignore[union-attr, operator]
    heads: dict[str, dict[str, list[int]]] = {}
    for name, parameter in model.named_parameters():
        if not name.endswith("weight") or not (rows := frozen_rows(parameter)):
            continue
        for part in head_slices(name, _rows(parameter), counts):
            if part.layer not in blocks and any(start <= part.start and part.stop <= stop for start, stop in rows):
                heads.setdefault(part.projection, {}).setdefault(str(part.head), []).append(part.layer)
    return heads


def _freeze_rows(parameter: torch.nn.Parameter, frozen: Rows, rows: int) -> None:
    if frozen == ((0, rows),):
        parameter.requires_grad_(False)
        return
    parameter.frozen_rows = frozen  # type: ignore[attr-defined]

    def without_frozen_rows(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()  # autograd may hand the same tensor to others
        for start, stop in frozen:
            gradient[start:stop] = 0
        return gradient

    parameter.register_hook(without_frozen_rows)


def _merged(slices: list[tuple[int, int]]) -> Rows:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(slices):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _shape(parameter: torch.nn.Parameter) -> torch.Size:
    """The whole shape, also of a parameter that ZeRO-3 has partitioned (its own is then empty)."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _rows(parameter: torch.nn.Parameter) -> int:
    shape = _shape(parameter)
    return shape[0] if shape else 1
