"""Which samples make up which optimizer step, and how a step's samples are dealt to ranks and micro-batches.

The order follows from the seed and the lengths alone; how many workers there are decides only where a sample is
computed. Epochs follow each other without a seam (a batch may span two), and every sample is seen once in each.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cft_ray.grid.settings import TrainingSettings


@dataclass
class SampleOrder:
    """The steps of a training.

    Args:
        lengths: [samples] tokens of each sample.
        settings: batch size, epochs or steps, packing.
        seed: of the order.
    """

    lengths: np.ndarray
    settings: TrainingSettings
    seed: int
    _epochs: dict[int, list[list[int]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.units_per_epoch: int = len(self._units(0))
        """samples, or packs, of one epoch"""
        epochs, batch = self.settings.epochs, self.settings.batch_size
        self.steps: int = self.settings.steps or math.ceil((epochs or 0) * self.units_per_epoch / batch)
        """optimizer steps of the whole training"""
        self._units_in_all = self.steps * batch if epochs is None else epochs * self.units_per_epoch

    def batch(self, step: int) -> list[int]:
        """Indices of the samples of optimizer step ``step`` (from 0)."""
        begin = step * self.settings.batch_size
        end = min(begin + self.settings.batch_size, self._units_in_all)
        samples: list[int] = []
        for unit in range(begin, end):
            epoch, place = divmod(unit, self.units_per_epoch)
            samples.extend(self._units(epoch)[place])
        return samples

    def epoch(self, step: int) -> float:
        """Passes over the data that are done after step ``step``."""
        return min((step + 1) * self.settings.batch_size, self._units_in_all) / self.units_per_epoch

    def _units(self, epoch: int) -> list[list[int]]:
        if epoch not in self._epochs:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(len(self.lengths))
            if self.settings.packing is None:
                units = [[sample] for sample in order.tolist()]
            else:
                packs = pack(order, self.lengths, self.settings.packing)
                units = [packs[place] for place in generator.permutation(len(packs))]
            self._epochs = {kept: units for kept, units in self._epochs.items() if kept >= epoch - 1}
            self._epochs[epoch] = units
        return self._epochs[epoch]


def pack(order: np.ndarray, lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each sample, longest first, into the pack with the least room that still holds it.

    How many packs come out depends on the lengths alone; which of equally long samples meet, on ``order``.

    Args:
        order: [samples] indices into ``lengths``.
        lengths: tokens of each sample.
        capacity: tokens of a pack; a longer sample has a pack of its own.
    """
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens of room, pack), sorted
    for sample in order[np.argsort(-lengths[order], kind="stable")].tolist():
        length = int(lengths[sample])
        place = bisect.bisect_left(rooms, (length, -1))
        if place < len(rooms):
            room, index = rooms.pop(place)
            packs[index].append(sample)
        else:
            room, index = max(capacity, length), len(packs)
            packs.append([sample])
        bisect.insort(rooms, (room - length, index))
    return packs


def deal(lengths: Sequence[int], ranks: int, tokens: int, *, padded: bool = False) -> list[list[list[int]]]:
    """Deal a global batch to ranks and micro-batches, by tokens.

    Longest first, each sample goes where the fewest tokens are. All ranks get the same number of micro-batches (ZeRO-3
    gathers parameters together), the smallest with which no micro-batch exceeds ``tokens``; some may stay empty.

    Args:
        lengths: tokens of each sample of the batch.
        ranks: workers.
        tokens: most tokens of a micro-batch; a single longer sample is still taken.
        padded: count a micro-batch as rows times its longest row.

    Returns:
        [rank][micro-batch] -> places in ``lengths``, longest first.
    """
    limit = max([tokens, *lengths])
    longest_first = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    count = max(1, math.ceil(sum(lengths) / (limit * ranks)))
    while True:
        bins = _fill(lengths, longest_first, count * ranks, limit, padded)
        if bins is not None:
            return [[bins[micro * ranks + rank] for micro in range(count)] for rank in range(ranks)]
        count += 1


def _fill(lengths: Sequence[int], order: list[int], bins: int, limit: int, padded: bool) -> list[list[int]] | None:
    filled: list[list[int]] = [[] for _ in range(bins)]
    loads = [0] * bins
    for place in order:
        if padded:
            after = [(len(bin_) + 1) * lengths[bin_[0] if bin_ else place] for bin_ in filled]
        else:
            after = [load + lengths[place] for load in loads]
        target = min(range(bins), key=after.__getitem__)
        if after[target] > limit:
            return None
        filled[target].append(place)
        loads[target] = after[target]
    return filled
