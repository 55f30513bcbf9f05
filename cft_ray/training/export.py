"""The finished model as a plain Hugging Face folder, gathered parameter by parameter, then read back and compared.

At no time is more than one whole parameter held beside the shard that is being written.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from cft_ray.drift.heads import decoder_layer
from cft_ray.errors import StageFailed
from cft_ray.models.finite import finite
from cft_ray.models.gathering import gathered
from cft_ray.models.stored import INDEX

SHARD_BYTES = 2 * 2**30


def gathered_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of every parameter, one gathered at a time; every rank iterates.

    Tied parameters come once. A tensor is valid until the next one is asked for, and is not to be changed.
    """
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            yield name, parameter.detach()


def stored_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of what is part of a model's files and no parameter: an expert's bias in its router, say."""
    for owner, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{owner}.{name}".removeprefix(".").replace(".base_layer.", "."), buffer


def write(
    weights: Iterable[tuple[str, torch.Tensor]],
    model: PreTrainedModel,
    side_files: Path,
    folder: Path,
    *,
    check: Callable[[Path], str | None] = lambda folder: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model; every rank calls it, rank 0 writes.

    Args:
        weights: names as the Hugging Face model in memory has them, and whole tensors; of its parameters.
        model: says how its files name and split them.
        side_files: folder of configuration, generation configuration and tokenizer (`cft_ray.models.saving`).
        folder: appears only when it is complete and what is in it has been compared with what was written.
        check: says in words what is wrong with the complete folder, if anything; called on rank 0.
        shard_bytes: of a file.

    Raises:
        StageFailed: a weight is infinite or no number, a file does not hold what was written into it, or the check fails;
            every rank raises.
    """
    leader = distributed.get_rank() == 0
    partial = folder.with_name(f".{folder.name}.partial")
    if leader:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(side_files, partial)
    digests: dict[str, str] = {}
    homes: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    size = total = 0
    endless: list[str] = []
    for name, tensor in _as_filed(chain(weights, stored_buffers(model)), model, leader):
        if shard and size + tensor.nbytes > shard_bytes:
            _flush(partial, shard, homes)
            shard, size = {}, 0
        shard[name] = tensor
        digests[name] = _digest(tensor)
        if not finite(tensor):
            endless.append(name)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    problem: list[str | None] = [None]
    if leader:
        _flush(partial, shard, homes)
        _finish(partial, homes, total)
        problem = [_not_numbers(endless) or _compare(partial, digests) or check(partial)]
    distributed.broadcast_object_list(problem, src=0)
    if problem[0]:
        if leader:
            shutil.rmtree(partial, ignore_errors=True)
        raise StageFailed(problem[0])
    if leader:
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)


def _not_numbers(names: list[str]) -> str | None:
    if not names:
        return None
    return f"the trained weights are no numbers: {', '.join(names[:5])} and {len(names)} in all; lower training.learning_rate"


def _as_filed(
    weights: Iterable[tuple[str, torch.Tensor]], model: PreTrainedModel, leader: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The leader's copies on the CPU under the names of the architecture's files.

    transformers fuses some weights while loading, such as a block's experts; they are taken apart again a block at a time,
    as its own ``save_pretrained`` does with a whole model.
    """
    group: dict[str, torch.Tensor] = {}
    block: int | None = None
    for name, tensor in weights:
        if not leader:
            continue
        if group and decoder_layer(name) != block:
            yield from _filed(model, group)
            group = {}
        block = decoder_layer(name)
        group[name] = tensor.cpu().contiguous().clone()
    yield from _filed(model, group)


def _filed(model: PreTrainedModel, group: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in revert_weight_conversion(model, group).items():
        yield name, tensor.contiguous().clone()  # parts of one tensor must not share memory in a safetensors file


def _flush(folder: Path, shard: dict[str, torch.Tensor], homes: dict[str, str]) -> None:
    name = f"part-{len(set(homes.values())) + 1:05d}.safetensors"
    save_file(shard, folder / name, metadata={"format": "pt"})
    (folder / name).chmod(folder.stat().st_mode & 0o666)  # the library gives a file to its owner alone, whatever the umask
    homes.update(dict.fromkeys(shard, name))


def _finish(folder: Path, homes: dict[str, str], total: int) -> None:
    """Names that Hugging Face expects, now that the number of shards is known."""
    parts = sorted(set(homes.values()))
    if len(parts) == 1:
        (folder / parts[0]).rename(folder / "model.safetensors")
        return
    names = {part: f"model-{index:05d}-of-{len(parts):05d}.safetensors" for index, part in enumerate(parts, 1)}
    for part, name in names.items():
        (folder / part).rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {weight: names[part] for weight, part in homes.items()}}
    (folder / INDEX).write_text(json.dumps(index, indent=2))


def _compare(folder: Path, digests: dict[str, str]) -> str | None:
    """What is wrong with the files, if anything."""
    unseen = set(digests)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                if digests.get(name) != _digest(weights.get_tensor(name)):
                    return f"{path.name}: {name} reads back differently from what was written"
                unseen.discard(name)
    return f"not in the files: {', '.join(sorted(unseen)[:5])}" if unseen else None


def _digest(tensor: torch.Tensor) -> str:
    raw: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()  # a buffer, which its annotation does not say
    return hashlib.blake2b(raw).hexdigest()
