"""Where each tensor of a Hugging Face folder lies on disk, without reading any.

The safetensors format is an 8-byte little-endian header length, a JSON header with each tensor's type, shape and byte
range, and the bytes. Knowing the ranges, a reader can fill buffers of its own choice of size; memory-mapping, which the
safetensors package does, would count the whole file towards the process's resident memory.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cft_ray.errors import UserError

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Types that weights may have -> bytes per element."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_CHUNK = 4 * 2**20
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


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """The tensors of a model folder, by the headers of ``model.safetensors`` or of the shards that its index names.

    Empty where there is neither: weights in another format.

    Raises:
        UserError: a shard that the index names is missing, a truncated or broken file, tensors other than the index says.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return _header(single)
    return _shards(index) if index.is_file() else []


def same_content(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers in the same shape and type; read a few megabytes at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    left = one.parameters * FLOAT_BYTES[one.dtype]
    with one.file.open("rb") as ours, other.file.open("rb") as theirs:
        ours.seek(one.offset)
        theirs.seek(other.offset)
        while left:
            size = min(left, _CHUNK)
            if ours.read(size) != theirs.read(size):
                return False
            left -= size
    return True


def _shards(index: Path) -> list[StoredTensor]:
    weight_map = json_of(index, index.read_bytes()).get("weight_map")
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
        header = json_of(file, stream.read(length))
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


def json_of(file: Path, text: bytes) -> dict[str, Any]:
    """A file's content as a JSON object.

    Raises:
        UserError: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:  # bad JSON, or bytes that are no UTF-8
        raise UserError(f"does not hold the JSON that belongs there: {error}", where=str(file), fix="fetch it again") from error
    if not isinstance(value, dict):
        raise UserError("does not hold a JSON object", where=str(file), fix="fetch it again")
    return value
