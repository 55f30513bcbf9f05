"""Batches of rows by length."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from cft_ray.inference.batches import by_length, padded, taken


@settings(deadline=None)
@given(some.lists(some.integers(1, 50), max_size=40), some.integers(1, 120))
def test_every_row_once_and_no_batch_over_its_tokens(lengths, tokens):
    batches = by_length(lengths, tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        widest = lengths[batch[0]]
        assert widest == max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * widest <= tokens
    order = [lengths[row] for batch in batches for row in batch]
    assert order == sorted(order, reverse=True)


def test_room_is_filled_on_the_right():
    rows = [[4, 5, 6], [7]]
    assert padded(rows, 9).tolist() == [[4, 5, 6], [7, 9, 9]]
    assert torch.equal(taken(rows, 4), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool))
