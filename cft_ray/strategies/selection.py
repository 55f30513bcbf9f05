"""Which prompts are replayed: one pure function, so that generated and original rows are the same prompts in one order.

The draw depends on the seed and the number of prompts only, not on how many are wanted: whoever takes fewer takes a
prefix (GR_5 of GR_10), and ER_10 takes the prompts of GR_10.
"""

from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

from cft_ray.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def replay_count(ratio: float, target_rows: int) -> int:
    """Rows to add: ``ratio`` of the Phase 2 data set's rows, halves rounded up.

    Args:
        ratio: fraction, in (0, 1]; taken as the decimal that is written, so 0.05 of 50 rows is 2.5 and gives 3.
        target_rows: rows of the Phase 2 data set.
    """
    return int((Decimal(repr(ratio)) * target_rows).to_integral_value(ROUND_HALF_UP))


def select(prompts: int, count: int, seed: int) -> "tuple[np.ndarray, np.ndarray]":
    """Draw prompts without replacement; where they run out, start again with a new permutation.

    Args:
        prompts: rows of the prompt data set.
        count: rows wanted, possibly more than ``prompts``.
        seed: not negative.

    Returns:
        Two int64 arrays of length ``count``: row index in [0, prompts), and the pass (0 for the first permutation) that
        it belongs to. The result for a smaller ``count`` is a prefix of the one for a larger.

    Raises:
        UserError: there is no prompt to draw from.
    """
    import numpy as np

    if count and not prompts:
        raise UserError("there are no prompts to replay", fix="use an English counterpart that has rows")
    passes = -(-count // prompts) if prompts else 0
    order = [_permutation(prompts, seed, number) for number in range(passes)]
    rows = np.concatenate(order)[:count] if order else np.empty(0, dtype=np.int64)
    return rows, np.arange(count, dtype=np.int64) // max(prompts, 1)


def _permutation(size: int, seed: int, number: int) -> "np.ndarray":
    import numpy as np

    # NumPy keeps a bit generator's raw stream stable over versions, not what `Generator.permutation` makes of it.
    keys = np.random.PCG64(np.random.SeedSequence((seed, number))).random_raw(size)
    return np.argsort(keys, kind="stable").astype(np.int64)
