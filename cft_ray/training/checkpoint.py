"""Mid-run checkpoints: each rank writes its shard, and a marker written last makes the checkpoint exist.

A shard is a safetensors file with, for every trained parameter, this rank's part of the fp32 master weights and of the
optimizer's moments: of the parameter, taken as one flat row of numbers, cut into as many equal parts as there are ranks. As the
whole row can be put together again from the shards, a training continues on any number of workers, whichever engine they
need. The sample order and the learning rate are functions of the step, so the step is all else that must be known. Nothing is
pickled.

    {checkpoints}/step-00000120/shard-0-of-2.safetensors, …, marker.json
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed

from cft_ray.errors import StageFailed
from cft_ray.training.engine import Engine

MARKER = "marker.json"


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

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write a checkpoint and remove older ones; every rank calls it."""
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
        folder = f"{self._root}/step-{progress.step:08d}"
        self._local.mkdir(parents=True, exist_ok=True)
        shard = self._local / f"shard-{rank}-{os.getpid()}.safetensors"
        tensors = {f"{key}/{name}": tensor.cpu().clone() for name, state in engine.shares() for key, tensor in state.items()}
        tensors["rng"] = torch.get_rng_state()
        save_file(tensors, shard)
        self._files.create_dir(folder, recursive=True)
        self._put(shard, f"{folder}/{_shard(rank, ranks)}")
        shard.unlink()
        distributed.barrier()
        if rank == 0:
            self._write(f"{folder}/{MARKER}", {**vars(progress), "ranks": ranks})
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

    def load(self, engine: Engine, step: int, identity: str) -> Progress:
        """Put a checkpoint's state into the engine; every rank calls it, however many there are.

        Raises:
            StageFailed: the checkpoint is of another training.
        """
        folder = f"{self._root}/step-{step:08d}"
        with self._files.open_input_stream(f"{folder}/{MARKER}") as stream:
            marker = json.loads(stream.read())
        ranks = marker.pop("ranks")
        progress = Progress(**marker)
        if progress.identity != identity:
            raise StageFailed(f"{folder} belongs to another training ({progress.identity[:12]}, not {identity[:12]})")
        rank, now = distributed.get_rank(), distributed.get_world_size()
        with _Shards(self._files, folder, ranks, self._local / f"resume-{rank}-{os.getpid()}") as shards:
            engine.begin_restore(step)
            for name, state in engine.shares():
                for key, tensor in state.items():
                    count = tensor.numel()
                    tensor.copy_(shards.read(f"{key}/{name}", rank * count, (rank + 1) * count))
            engine.end_restore()
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
