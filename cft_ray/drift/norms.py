"""Norms of the difference of two stored tensors, streamed.

Both files are read once, in chunks that stay in a core's cache, by several threads; reading and arithmetic release the
interpreter lock. Memory is a few megabytes a thread, whatever the model's size. Arithmetic is float32 on sums of
`_BLOCK` squares (float64 for float64 weights), and float64 above that: the norm of a whole tensor in one float32 sum can
be off by 1e-3.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import local

import torch

from cft_ray.drift.pairs import TensorPair
from cft_ray.errors import UserError
from cft_ray.models.stored import FLOAT_BYTES, StoredTensor

_CHUNK = 2**18
"""elements that are read and measured at a time: both sides and their float32 copies fit a core's cache"""
_BLOCK = 2**10
"""elements of one float32 sum"""
_PIECE = 2**25
"""most elements that a thread takes at a time"""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class Norms:
    """Of one tensor, or of one head's rows of it."""

    l2: float
    """Euclidean (Frobenius) norm of left - right"""
    l2_left: float
    l2_right: float
    max_abs: float
    """largest absolute element of left - right"""

    @classmethod
    def joined(cls, parts: Sequence["Norms"]) -> "Norms":
        """Of disjoint parts together."""
        l2, left, right = (sum(getattr(part, name) ** 2 for part in parts) ** 0.5 for name in ("l2", "l2_left", "l2_right"))
        return cls(l2, left, right, max((part.max_abs for part in parts), default=0.0))


@dataclass(frozen=True)
class _Piece:
    pair: int
    head: int | None
    start: int
    """first element"""
    stop: int


def stream_norms(
    pairs: Sequence[TensorPair], *, threads: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[tuple[Norms, list[Norms]]]:
    """Norms of each pair, and of each of its heads.

    Args:
        pairs: what to compare.
        threads: readers; each needs about a core.
        progress: called with the elements done and in all, after each piece, in the calling thread.

    Returns:
        One entry a pair: the whole tensor's norms, and one `Norms` a head in the order of ``pair.heads``.

    Raises:
        UserError: NaN or infinite weights; a file that became shorter.
    """
    pieces = [piece for number, pair in enumerate(pairs) for piece in _pieces(number, pair)]
    total = sum(piece.stop - piece.start for piece in pieces)
    found: list[dict[int | None, list[Norms]]] = [{} for _ in pairs]
    done = 0
    with ExitStack() as stack:
        files = stack.enter_context(_opened({tensor.file for pair in pairs for tensor in (pair.left, pair.right)}))
        pool = stack.enter_context(_single_threaded(threads))
        buffers = local()

        def measure(piece: _Piece) -> Norms:
            if not hasattr(buffers, "reader"):
                buffers.reader = _Reader(files)
            return buffers.reader.measure(pairs[piece.pair], piece.start, piece.stop)

        for piece, norms in zip(pieces, pool.map(measure, pieces), strict=True):
            found[piece.pair].setdefault(piece.head, []).append(norms)
            done += piece.stop - piece.start
            progress(done, total)
    return [
        (
            Norms.joined([part for parts in by_head.values() for part in parts]),
            [Norms.joined(by_head[head]) for head in range(len(pair.heads))],
        )
        for pair, by_head in zip(pairs, found, strict=True)
    ]


def _pieces(number: int, pair: TensorPair) -> Iterator[_Piece]:
    spans: list[tuple[int | None, int, int]] = [
        (index, part.start * pair.columns, part.stop * pair.columns) for index, part in enumerate(pair.heads)
    ]
    for head, first, last in spans or [(None, 0, pair.rows * pair.columns)]:
        for start in range(first, last, _PIECE):
            yield _Piece(number, head, start, min(start + _PIECE, last))


@contextmanager
def _opened(files: set[Path]) -> Iterator[dict[Path, int]]:
    with ExitStack() as stack:
        yield {file: stack.enter_context(file.open("rb", buffering=0)).fileno() for file in files}


@contextmanager
def _single_threaded(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads do not use torch's own: the parallelism is over pieces."""
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "drift", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)


class _Reader:
    """One thread's buffers. A chunk costs few calls, because the interpreter is what the threads contend for."""

    def __init__(self, files: dict[Path, int]) -> None:
        self.files = files
        self.raw = [torch.empty(_CHUNK * 8, dtype=torch.uint8) for _ in range(2)]
        self.bytes = [raw.numpy().data for raw in self.raw]
        self.work = torch.empty(2, _CHUNK, dtype=torch.float32)
        self.norms = torch.empty(3, _PIECE // _BLOCK + 1, dtype=torch.float32)
        """of the blocks of a piece: difference, left, right"""

    def measure(self, pair: TensorPair, start: int, stop: int) -> Norms:
        if "F64" in (pair.left.dtype, pair.right.dtype):
            return self._slowly(pair, start, stop)
        extremes: list[torch.Tensor] = []
        done = 0
        for first in range(start, stop, _CHUNK):
            count = min(_CHUNK, stop - first)
            rows = -(-count // _BLOCK)
            for side, tensor in enumerate((pair.left, pair.right)):
                self.work[side, :count].copy_(self._read(side, tensor, first, count))
            if rows * _BLOCK > count:
                self.work[:, count : rows * _BLOCK] = 0  # adds nothing to either side
            a, b = self.work[:, : rows * _BLOCK].view(2, rows, _BLOCK)
            difference, left, right = self.norms[:, done : done + rows]
            torch.linalg.vector_norm(a, dim=1, out=left)
            torch.linalg.vector_norm(b, dim=1, out=right)
            torch.linalg.vector_norm(a.sub_(b), dim=1, out=difference)
            extremes += torch.aminmax(a)
            done += rows
        squares = self.norms[:, :done].double().square().sum(1)
        if not bool(torch.isfinite(squares).all()):  # a square may be too large for float32, or a weight be no number
            return self._slowly(pair, start, stop)
        l2, l2_left, l2_right = squares.sqrt().tolist()
        return Norms(l2, l2_left, l2_right, torch.stack(extremes).abs().max().item() if extremes else 0.0)

    def _slowly(self, pair: TensorPair, start: int, stop: int) -> Norms:
        """In float64, each weight looked at."""
        squares = torch.zeros(3, dtype=torch.float64)
        max_abs = 0.0
        for first in range(start, stop, _CHUNK):
            count = min(_CHUNK, stop - first)
            left, right = (self._read(side, each, first, count) for side, each in enumerate((pair.left, pair.right)))
            _check_finite(pair, left, right)
            sides = left.double(), right.double()
            difference = sides[0] - sides[1]
            squares += torch.stack([values.dot(values) for values in (difference, *sides)])
            max_abs = max(max_abs, difference.abs().max().item())
        l2, l2_left, l2_right = squares.sqrt().tolist()
        return Norms(l2, l2_left, l2_right, max_abs)

    def _read(self, side: int, tensor: StoredTensor, first: int, count: int) -> torch.Tensor:
        size = FLOAT_BYTES[tensor.dtype]
        view, offset = self.bytes[side][: count * size], tensor.offset + first * size
        while view:
            read = os.preadv(self.files[tensor.file], [view], offset)
            if not read:
                raise UserError(f"ends inside tensor {tensor.name}", where=str(tensor.file), fix="fetch it again")
            view, offset = view[read:], offset + read
        return self.raw[side][: count * size].view(_DTYPES[tensor.dtype])


def _check_finite(pair: TensorPair, left: torch.Tensor, right: torch.Tensor) -> None:
    for tensor, values in ((pair.left, left), (pair.right, right)):
        if not bool(torch.isfinite(values.double()).all()):
            raise UserError(
                f"tensor {tensor.name} holds weights that are not finite (NaN or infinity)",
                where=str(tensor.file),
                fix="train the model again with a lower learning rate, or fetch the checkpoint again",
            )
