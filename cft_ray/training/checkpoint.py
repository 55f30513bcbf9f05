"""Mid-run checkpoints: each rank writes its shard, and a marker written last makes the checkpoint exist.

A shard is a safetensors file with, for every trained parameter, this rank's part of the fp32 master weights and of the
optimizer's moments: of the parameter, taken as one flat row of numbers, cut into as many equal parts as there are ranks. As the
whole row can be put together again from the shards, a training continues on any number of workers, whichever engine they
need. The sample order and the learning rate are functions of the step, so the step is all else that must be known. Nothing is
pickled.

    {checkpoints}/step-00000120-0003/shard-0-of-2.safetensors, …, steps.parquet, marker.json

Shards and the step records are put to their final names, in a folder of this step and attempt alone, and read back; the
marker says how large they are and what their digests are. Only then do older checkpoints go, those of later attempts
excepted. A checkpoint whose files are not what its marker says is passed over for the one before it, and one that cannot be
written costs a warning: the training goes on, and the checkpoint before it stays.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed

from cft_ray.metrics.schemas import table_of
from cft_ray.storage.errors import StorageError
from cft_ray.storage.root import Storage
from cft_ray.training import group
from cft_ray.training.engine import Engine
from cft_ray.training.records import TABLE, StepRecords

MARKER, RECORDS = "marker.json", "steps.parquet"
LARGEST = 512 * 2**20
"""bytes of a marker, and of the step records, which are read into memory"""
_FOLDER = re.compile(r"step-(\d{8})(?:-(\d{4,9}))?")


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Args:
        step: optimizer steps done.
        tokens, samples: seen so far, over all workers.
        records: of the steps so far; grows with the training.
        identity: of the training: a checkpoint of another one is not continued.
    """

    step: int
    tokens: int
    samples: int
    records: StepRecords
    identity: str


TOLD = ("step", "tokens", "samples", "identity")
"""what the marker says of a `Progress`; its records lie beside"""


class Torn(Exception):
    """A checkpoint whose files are not what its marker says."""


class Checkpoints:
    """The checkpoints of one training under a folder or URI.

    Args:
        uri: folder or URI; made when first written.
        local: folder for shards on their way.
        attempt: number of this attempt at the training; a higher one took over.
        prove: raises where this attempt has been taken over.
    """

    def __init__(self, uri: str, local: Path, attempt: int = 1, prove: Callable[[], None] = lambda: None) -> None:
        self._storage = Storage(uri)
        self._local, self._attempt, self._prove = local, attempt, prove

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write a checkpoint, read it back, and remove older ones; every rank calls it.

        Raises:
            LeaseLost: this attempt has been taken over.
        """
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
        folder = f"step-{progress.step:08d}-{self._attempt:04d}"
        if not self._agreed(self._prove if rank == 0 else None):
            return
        found: list[dict[str, Any]] = []
        if self._agreed(lambda: found.append(self._put_shard(engine, folder, rank, ranks))):
            shards: list[Any] = [None] * ranks
            distributed.all_gather_object(shards, found[0])
            self._agreed((lambda: self._finish(folder, progress, shards)) if rank == 0 else None)

    def resume(self, engine: Engine, identity: str) -> Progress | None:
        """Put the newest sound checkpoint's state into the engine; every rank calls it, however many there are.

        Args:
            engine: before its first step.
            identity: of the training.

        Returns:
            How far the training was; None: there is no checkpoint to continue.
        """
        for name in self._common(self._names):
            marker = self._common(lambda name=name: self._marker(name, identity))
            if marker is not None and (progress := self._load(engine, name, marker)) is not None:
                return progress
        return None

    def _agreed(self, work: Callable[[], None] | None) -> bool:
        """Do something on this rank; whether it went well on all. A storage's refusal is a warning, all else is raised by all."""
        problem: Exception | None = None
        try:
            if work is not None:
                work()
        except Exception as raised:  # noqa: BLE001 - raised by all below, so that none waits for the others
            problem = raised
        if (first := group.first_problem(problem)) is None:
            return True
        if not isinstance(first, StorageError):
            raise first
        if distributed.get_rank() == 0:
            logging.getLogger(__name__).warning("this checkpoint is not written, and the one before it stays: %s", first)
        return False

    def _common(self, look: Callable[[], Any]) -> Any:
        """What rank 0 sees, on every rank."""
        seen: list[Any] = [None, None]
        if distributed.get_rank() == 0:
            try:
                seen[0] = look()
            except Exception as raised:  # noqa: BLE001 - raised by all below
                seen[1] = raised
        distributed.broadcast_object_list(seen, src=0)
        if seen[1] is not None:
            raise seen[1]
        return seen[0]

    def _put_shard(self, engine: Engine, folder: str, rank: int, ranks: int) -> dict[str, Any]:
        """Bring this rank's shard to its place; returns its name, size and digest."""
        self._local.mkdir(parents=True, exist_ok=True)
        path = self._local / f"shard-{rank}-{os.getpid()}.safetensors"
        tensors = {f"{key}/{name}": tensor.cpu().clone() for name, state in engine.shares() for key, tensor in state.items()}
        tensors["rng"] = torch.get_rng_state()
        try:
            save_file(tensors, path)
            name, digest = _shard(rank, ranks), _sha256(path)
            for _ in range(2):
                self._storage.upload(path, folder, name)
                if self._storage.digest(folder, name) == digest:
                    return {"name": name, "size": path.stat().st_size, "sha256": digest}
            raise StorageError("a file reads otherwise than it was written", where=self._storage.location(folder, name))
        finally:
            path.unlink(missing_ok=True)

    def _finish(self, folder: str, progress: Progress, shards: list[dict[str, Any]]) -> None:
        """Make the checkpoint exist, then remove older ones."""
        self._prove()
        buffer = pa.BufferOutputStream()
        pq.write_table(progress.records.table(), buffer)
        records = buffer.getvalue().to_pybytes()
        self._put(folder, RECORDS, records)
        told = {name: getattr(progress, name) for name in TOLD}
        described = {"size": len(records), "sha256": sha256(records).hexdigest()}
        self._put(folder, MARKER, json.dumps({**told, "ranks": len(shards), "shards": shards, "records": described}).encode())
        self._prove()
        for name in self._names():
            found = _FOLDER.fullmatch(name)
            assert found is not None
            if name != folder and int(found[2] or 0) <= self._attempt:
                self._storage.delete(name)

    def _put(self, folder: str, name: str, data: bytes) -> None:
        self._storage.write(folder, name, data=data)
        if self._storage.read(folder, name) != data:
            raise StorageError("a file reads otherwise than it was written", where=self._storage.location(folder, name))

    def _names(self) -> list[str]:
        """Folders of checkpoints, the newest first."""
        found = [match for entry in self._storage.list() if (match := _FOLDER.fullmatch(entry.name))]
        return [match[0] for match in sorted(found, key=lambda match: (int(match[1]), int(match[2] or 0)), reverse=True)]

    def _marker(self, name: str, identity: str) -> dict[str, Any] | None:
        """A checkpoint's marker; None where it is torn, or of another training."""
        try:
            data = self._storage.read(name, MARKER, limit=LARGEST)
            if data is None:  # its writing was cut off
                return None
            marker = json.loads(data)
            if marker["identity"] != identity:
                raise Torn("it belongs to another training")
            for shard in marker.setdefault(
                "shards", [{"name": _shard(rank, marker["ranks"])} for rank in range(marker["ranks"])]
            ):
                size = self._storage.size(name, shard["name"])
                if size is None or size != shard.get("size", size):
                    raise Torn(f"{shard['name']} has {size} bytes, and not {shard.get('size')}")
            if "rows" not in marker and self._storage.size(name, RECORDS) != marker["records"]["size"]:
                raise Torn(f"{RECORDS} has not {marker['records']['size']} bytes")
        except (ValueError, TypeError, KeyError, Torn) as error:
            self._pass_over(name, error)
            return None
        return marker

    def _load(self, engine: Engine, name: str, marker: dict[str, Any]) -> Progress | None:
        rank, now = distributed.get_rank(), distributed.get_world_size()
        ranks, shards = marker["ranks"], marker["shards"]
        local = self._local / f"resume-{rank}-{os.getpid()}"
        with ExitStack() as leaving:
            problem: Exception | None = None
            pieces = _Shards(self._storage, name, shards, local, rank, now)
            try:
                leaving.enter_context(pieces)
            except Exception as raised:  # noqa: BLE001 - raised by all below, or passed over by all
                problem = raised
            if first := group.first_problem(problem):
                if not isinstance(first, Torn):
                    raise first
                self._pass_over(name, first)
                return None
            records = self._common(lambda: self._records(name, marker))
            if records is None:
                return None
            engine.begin_restore(marker["step"])
            for key, state in engine.shares():
                for part, tensor in state.items():
                    count = tensor.numel()
                    tensor.copy_(pieces.read(f"{part}/{key}", rank * count, (rank + 1) * count))
            engine.end_restore()
            if ranks == now:
                torch.set_rng_state(pieces.open(rank).get_tensor("rng"))
        return Progress(**{field: marker[field] for field in TOLD}, records=StepRecords(records))

    def _records(self, name: str, marker: dict[str, Any]) -> pa.Table | None:
        """The records of the steps before; None where they are torn. Checkpoints once had them in their markers."""
        if "rows" in marker:
            return table_of(TABLE, marker["rows"])
        data = self._storage.read(name, RECORDS, limit=LARGEST)
        if data is None or sha256(data).hexdigest() != marker["records"]["sha256"]:
            self._pass_over(name, Torn(f"{RECORDS} is not there, or has another SHA-256 than its marker says"))
            return None
        return pq.read_table(pa.BufferReader(data))

    def _pass_over(self, name: str, error: Exception) -> None:
        if distributed.get_rank() == 0:
            logging.getLogger(__name__).warning("checkpoint %s is passed over: %s", self._storage.location(name), error)


class _Shards:
    """The shards of a checkpoint that one rank reads, brought to this machine and checked.

    Raises:
        Torn: one is not what the marker says, or no longer there.
    """

    def __init__(self, storage: Storage, folder: str, shards: list[dict[str, Any]], local: Path, rank: int, now: int) -> None:
        self._storage, self._folder, self._shards, self._local = storage, folder, shards, local
        self.ranks = len(shards)
        # Cut otherwise, a rank's part may begin in an old one's and end in the next; the padding at the end shifts it a little.
        first, last = (rank, rank) if now == self.ranks else (rank * self.ranks // now - 1, -(-(rank + 1) * self.ranks // now))
        self._needed = range(min(max(first, 0), self.ranks - 1), min(last, self.ranks - 1) + 1)
        self._open: dict[int, Any] = {}

    def __enter__(self) -> "_Shards":
        with ExitStack() as undo:
            undo.callback(self.__exit__)
            for rank in self._needed:
                self.open(rank)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._open.values():
            shard.__exit__(None, None, None)
        for shard in self._shards:
            (self._local / shard["name"]).unlink(missing_ok=True)
        if self._local.is_dir():
            self._local.rmdir()

    def open(self, rank: int) -> Any:
        """An old rank's shard."""
        if rank not in self._open:
            shard = self._shards[rank]
            path = self._local / shard["name"]
            for left in (1, 0):  # what was damaged on the way comes whole the second time
                try:
                    digest = self._storage.download(path, self._folder, shard["name"])
                except FileNotFoundError as error:
                    raise Torn(f"{shard['name']} is not there") from error
                if digest == shard.get("sha256", digest):
                    break
                if not left:
                    raise Torn(f"{shard['name']} has another SHA-256 than its marker says")
            try:
                self._open[rank] = safe_open(path, framework="pt").__enter__()
            except Exception as error:  # safetensors' own error has no better base
                raise Torn(f"{shard['name']} is no safetensors file ({error})") from error
        return self._open[rank]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Numbers ``start`` to ``stop`` of a flat parameter, cut as the old ranks had it."""
        width = self.open(self._needed[0]).get_slice(name).get_shape()[0]
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


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()
