"""Where each tensor of a Hugging Face folder lies on disk, without reading any.

The safetensors format is an 8-byte little-endian header length, a JSON header with each tensor's type, shape and byte
range, and the bytes. Knowing the ranges, a reader can fill buffers of its own choice of size; memory-mapping, which the
safetensors package does, would count the whole file towards the process's resident memory.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cft_ray.errors import UserError

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Types that weights may have -> bytes per element."""

_BUFFERS = ("rotary_emb.inv_freq",)  # recomputed from the config; older checkpoints stored them
_HEADER_LIMIT = 100 * 2**20  # that of the safetensors package


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's place."""

    name: str
    file: Path
    offset: int
    """first byte in the file"""
    dtype: str
    """as safetensors names it, a key of `FLOAT_BYTES`"""
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class StoredModel:
    """A folder's configuration and tensors, these in the order in which they lie in their files."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def stored_model(folder: Path) -> StoredModel:
    """Read the headers of a model folder: ``config.json`` and ``model.safetensors``, or its shards by their index.

    Raises:
        UserError: no such files, a shard that the index names is missing, a truncated or broken file, tensors other than
            the index says, quantised weights.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError("there is no config.json", where=str(folder), fix="give a Hugging Face model folder")
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        tensors = _header(single)
    elif index.is_file():
        tensors = _shards(index)
    else:
        raise UserError(
            "there is neither model.safetensors nor model.safetensors.index.json",
            where=str(folder),
            fix="save the model with safetensors (pickled weights are not read; adapters must be merged)",
        )
    kept = {tensor.name: tensor for tensor in tensors if not tensor.name.endswith(_BUFFERS)}
    for tensor in kept.values():
        if tensor.dtype not in FLOAT_BYTES:
            raise UserError(
                f"tensor {tensor.name} is {tensor.dtype}; quantised or whole-number weights cannot be compared",
                where=str(tensor.file),
                fix=f"use weights of {', '.join(FLOAT_BYTES)}",
            )
    return StoredModel(folder, _json(config, config.read_bytes()), kept)


def _shards(index: Path) -> list[StoredTensor]:
    weight_map = _json(index, index.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError("the index has no weight_map", where=str(index), fix="save the model again")
    tensors = []
    for name in sorted(set(weight_map.values())):
        shard = index.parent / name
        if shard.parent != index.parent or not shard.is_file():
            raise UserError(f"the index names {name}, which is not there", where=str(index), fix="fetch the missing shard")
        tensors += _header(shard)
    placed = {tensor.name: tensor.file.name for tensor in tensors}
    for name, shard in weight_map.items():
        if placed.get(name) != shard:
            raise UserError(f"tensor {name} is not in {shard}, where the index puts it", where=str(index), fix="save it again")
    return tensors


def _header(file: Path) -> list[StoredTensor]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise UserError("is no whole safetensors file: its header is cut off", where=str(file), fix="fetch it again")
        header = _json(file, stream.read(length))
    tensors = [
        StoredTensor(name, file, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    for tensor in tensors:
        first, last = header[tensor.name]["data_offsets"]
        if tensor.dtype in FLOAT_BYTES and last - first != tensor.parameters * FLOAT_BYTES[tensor.dtype]:
            raise UserError(f"tensor {tensor.name} has {last - first} bytes, which do not fit its shape", where=str(file))
        if 8 + length + last > size:
            raise UserError(
                f"is cut off: tensor {tensor.name} ends at byte {8 + length + last} of {size}",
                where=str(file),
                fix="fetch it again",
            )
    return sorted(tensors, key=lambda tensor: tensor.offset)


def _json(file: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:  # bad JSON, or bytes that are no UTF-8
        raise UserError(f"does not hold the JSON that belongs there: {error}", where=str(file), fix="fetch it again") from error
    if not isinstance(value, dict):
        raise UserError("does not hold a JSON object", where=str(file), fix="fetch it again")
    return value
