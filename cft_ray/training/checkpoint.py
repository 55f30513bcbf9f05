"""Mid-run checkpoints: each rank writes its shard, and a marker written last makes the checkpoint exist.

A shard is a safetensors file with, for every trained parameter, this rank's part of the fp32 master weights and of the
optimizer's moments. ZeRO-3 cuts a parameter, taken as one flat row of numbers, into equal parts; as the whole row can be
put together again from the shards, a training continues on any number of workers. The sample order and the learning
rate are functions of the step, so the step is all else that must be known. Nothing is pickled.

    {checkpoints}/step-00000120/shard-0-of-2.safetensors, …, marker.json
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed

from cft_ray.errors import StageFailed

MARKER = "marker.json"
MASTER = "fp32"


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Args:
        step: optimizer steps done.
        tokens, samples: seen so far, over all workers.
        rows: the step records so far.
        identity: of the training: a checkpoint of another one is not continued.
    """

    step: int
    tokens: int
    samples: int
    rows: list[dict[str, Any]]
    identity: str


class Checkpoints:
    """The checkpoints of one training under a folder or URI."""

    def __init__(self, uri: str, local: Path) -> None:
        """Open.

        Args:
            uri: folder or URI; made when first written.
            local: folder for shards on their way.
        """
        if "://" not in uri:
            uri = str(Path(uri).absolute())
        self._files, self._root = pafs.FileSystem.from_uri(uri) if "://" in uri else (pafs.LocalFileSystem(), uri)
        self._local = local

    def save(self, engine: Any, progress: Progress) -> None:
        """Write a checkpoint and remove older ones; every rank calls it."""
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
        folder = f"{self._root}/step-{progress.step:08d}"
        self._local.mkdir(parents=True, exist_ok=True)
        shard = self._local / f"shard-{rank}-{os.getpid()}.safetensors"
        tensors, scalars = _state(engine)
        tensors["rng"] = torch.get_rng_state()
        save_file(tensors, shard)
        self._files.create_dir(folder, recursive=True)
        self._put(shard, f"{folder}/{_shard(rank, ranks)}")
        shard.unlink()
        distributed.barrier()
        if rank == 0:
            self._write(f"{folder}/{MARKER}", {**vars(progress), "ranks": ranks, "scalars": scalars})
            for other in self._steps():
                if other != progress.step:
                    self._files.delete_dir(f"{self._root}/step-{other:08d}")
        distributed.barrier()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; the same on every rank."""
        found: list[Any] = [None]
        if distributed.get_rank() == 0:
            complete = [step for step in self._steps() if self._exists(f"{self._root}/step-{step:08d}/{MARKER}")]
            found = [max(complete, default=None)]
        distributed.broadcast_object_list(found, src=0)
        return found[0]

    def load(self, engine: Any, step: int, identity: str) -> Progress:
        """Put a checkpoint's state into the engine; every rank calls it, however many there are.

        Raises:
            StageFailed: the checkpoint is of another training.
        """
        folder = f"{self._root}/step-{step:08d}"
        with self._files.open_input_stream(f"{folder}/{MARKER}") as stream:
            marker = json.loads(stream.read())
        ranks, scalars = marker.pop("ranks"), marker.pop("scalars")
        progress = Progress(**marker)
        if progress.identity != identity:
            raise StageFailed(f"{folder} belongs to another training ({progress.identity[:12]}, not {identity[:12]})")
        rank, now = distributed.get_rank(), distributed.get_world_size()
        with _Shards(self._files, folder, ranks, self._local / f"resume-{rank}-{os.getpid()}") as shards:
            _restore(engine, shards, scalars)
            if ranks == now:
                torch.set_rng_state(shards.open(rank).get_tensor("rng"))
        return progress

    def _steps(self) -> list[int]:
        selector = pafs.FileSelector(self._root, allow_not_found=True)
        names = [info.base_name for info in self._files.get_file_info(selector) if info.type == pafs.FileType.Directory]
        return [int(name.removeprefix("step-")) for name in names if name.startswith("step-")]

    def _exists(self, path: str) -> bool:
        return self._files.get_file_info(path).type == pafs.FileType.File

    def _put(self, source: Path, target: str) -> None:
        partial = f"{target}.partial"
        pafs.copy_files(str(source), partial, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=self._files)
        self._files.move(partial, target)

    def _write(self, path: str, value: dict[str, Any]) -> None:
        with self._files.open_output_stream(f"{path}.partial") as stream:
            stream.write(json.dumps(value).encode())
        self._files.move(f"{path}.partial", path)


class _Shards:
    """Shards of a checkpoint, fetched to this machine when first asked for."""

    def __init__(self, files: pafs.FileSystem, folder: str, ranks: int, local: Path) -> None:
        self._files, self._folder, self.ranks, self._local = files, folder, ranks, local
        self._open: dict[int, Any] = {}

    def __enter__(self) -> "_Shards":
        self._local.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for rank, shard in self._open.items():
            shard.__exit__(None, None, None)
            (self._local / _shard(rank, self.ranks)).unlink()
        self._local.rmdir()

    def open(self, rank: int) -> Any:
        if rank not in self._open:
            name = _shard(rank, self.ranks)
            pafs.copy_files(
                f"{self._folder}/{name}",
                str(self._local / name),
                source_filesystem=self._files,
                destination_filesystem=pafs.LocalFileSystem(),
            )
            self._open[rank] = safe_open(self._local / name, framework="pt").__enter__()
        return self._open[rank]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Numbers ``start`` to ``stop`` of a flat parameter, cut as the old ranks had it."""
        width = self.open(0).get_slice(name).get_shape()[0]
        parts = []
        while start < stop:
            rank = start // width
            if rank >= self.ranks:  # padding of the new cut beyond the old one's
                parts.append(torch.zeros(stop - start))
                break
            end = min(stop, (rank + 1) * width)
            parts.append(self.open(rank).get_slice(name)[start - rank * width : end - rank * width])
            start = end
        return torch.cat(parts)


def _shard(rank: int, ranks: int) -> str:
    return f"shard-{rank}-of-{ranks}.safetensors"


def _trained(engine: Any) -> Iterator[tuple[str, int, int, int]]:
    """(name, sub-group, offset, numbers) of this rank's part of every trained parameter."""
    optimizer = engine.optimizer
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield name, *optimizer.grad_position[optimizer.get_param_id(parameter)]


def _state(engine: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    optimizer = engine.optimizer
    flats = optimizer.fp32_partitioned_groups_flat
    tensors: dict[str, torch.Tensor] = {}
    for name, group, offset, count in _trained(engine):
        states = {MASTER: flats[group], **optimizer.optimizer.state[flats[group]]}
        for key, value in states.items():
            if torch.is_tensor(value) and value.numel() == flats[group].numel() and value.dim():
                tensors[f"{key}/{name}"] = value.detach().narrow(0, offset, count).cpu().clone()
    scalars = [
        {
            key: {"value": float(value), "tensor": torch.is_tensor(value)}
            for key, value in optimizer.optimizer.state[flat].items()
            if not torch.is_tensor(value) or not value.dim()
        }
        for flat in flats
    ]
    return tensors, scalars


def _restore(engine: Any, shards: _Shards, scalars: list[dict[str, Any]]) -> None:
    optimizer = engine.optimizer
    flats = optimizer.fp32_partitioned_groups_flat
    moments = sorted({name.split("/", 1)[0] for name in shards.open(0).keys() if "/" in name} - {MASTER})  # noqa: SIM118
    for flat in flats:
        # Every step has touched every sub-group, so their counters agree; the cut into sub-groups may have changed.
        optimizer.optimizer.state[flat] = {key: torch.zeros_like(flat) for key in moments} | {
            key: torch.tensor(saved["value"]) if saved["tensor"] else int(saved["value"]) for key, saved in scalars[0].items()
        }
    rank = distributed.get_rank()
    for name, group, offset, count in _trained(engine):
        state = optimizer.optimizer.state[flats[group]]
        for key in (MASTER, *moments):
            target = flats[group] if key == MASTER else state[key]
            target.data.narrow(0, offset, count).copy_(shards.read(f"{key}/{name}", rank * count, (rank + 1) * count))
    for group in range(len(flats)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
