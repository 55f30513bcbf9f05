"""Rows of tokens as batches for a causal model: like lengths together, padded on the right, without a mask.

Under causal attention no token sees what comes after it, so the room behind a shorter row changes nothing; and without
a mask attention takes its fastest path. Whoever reads the output leaves the room out.
"""

from collections.abc import Sequence

import numpy as np
import torch

Tokens = Sequence[int] | np.ndarray
"""a row's token ids"""


def by_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Group rows into batches, longest first, so that what does not fit into memory shows at once.

    Args:
        lengths: tokens of each row.
        tokens: most tokens of a batch, room included; a single longer row is a batch of its own.

    Returns:
        Places in ``lengths``; each batch starts with its longest row.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(ids: Sequence[Tokens], pad_id: int) -> torch.Tensor:
    """[rows, longest] int64 token ids, filled up on the right."""
    batch = torch.full((len(ids), max(map(len, ids))), pad_id)
    for place, row in enumerate(ids):
        batch[place, : len(row)] = torch.as_tensor(row)
    return batch


def taken(ids: Sequence[Tokens], width: int) -> torch.Tensor:
    """[rows, width] bool: which places of the padded batch hold tokens."""
    return torch.arange(width) < torch.tensor([len(row) for row in ids])[:, None]
