"""Rows at the border of the length, all of them accounted for; batches by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cft_ray.errors import UserError
from cft_ray.grid.settings import Template, TrainingSettings
from cft_ray.training.collate import collate
from cft_ray.training.examples import Examples, RowCounts, encode
from cft_ray.training.model import byte_tokenizer

TOKENIZER = byte_tokenizer(512)
PLAIN = Template(name="plain")


def table(*rows: dict[str, Any]) -> pa.Table:
    blank = {"system": "", "instruction": "", "input": "", "output": "", "language": "en", "turns": ""}
    return pa.Table.from_pylist([{"id": str(n), **blank, **row} for n, row in enumerate(rows)])


def encoded(*rows: dict[str, Any], unanswered: bool = False, **settings: Any) -> Examples:
    return encode(table(*rows), PLAIN, TOKENIZER, TrainingSettings(**settings), where="test", unanswered=unanswered)


def test_rows_of_exactly_the_length_are_kept_and_one_more_is_not():
    row = {"instruction": "ab", "output": "cd"}  # <s> ab \n\n cd </s>: 8 tokens
    assert encoded(row, max_length=8).counts == RowCounts(rows=1, used=1, too_long=0, without_target=0)
    for long_rows, length in (("truncate", 7), ("drop", None), ("refuse", None)):
        if length is None:
            with pytest.raises(UserError, match="1 too long" if long_rows == "drop" else "1 of 1 rows are longer than 7 tokens"):
                encoded(row, max_length=7, long_rows=long_rows)
        else:
            cut = encoded(row, max_length=7, long_rows=long_rows)
            assert cut.lengths.tolist() == [7] and cut.targets.tolist() == [2] and cut.counts.too_long == 1
    # Of an answer that begins where the row is cut nothing is left.
    with pytest.raises(UserError, match=r"0 too long|1 too long"):
        encoded(row, max_length=5, long_rows="truncate")
    assert encoded(row, max_length=6, long_rows="truncate").targets.tolist() == [1]
    with pytest.raises(UserError):
        encoded(row, max_length=5, long_rows="truncate", train_on_prompt=True)


def test_every_row_is_accounted_for():
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "output": " \n"},
        {"instruction": "a" * 30, "output": "b"},
        {"instruction": "a", "output": "b" * 30},
        {"instruction": "say </s>", "output": "b"},
    ]
    whole = table(*rows).append_column("finish_reason", pa.array(["stop", "stop", "stop", "length", None]))
    found = encode(whole, PLAIN, TOKENIZER, TrainingSettings(max_length=20, long_rows="truncate"), where="x")
    counts = found.counts
    assert (counts.rows, counts.used, counts.too_long, counts.no_output, counts.without_target) == (5, 3, 2, 1, 1)
    assert (counts.cut, counts.special_in_text) == (1, 1) and found.places.tolist() == [0, 3, 4]
    account = counts.account(TrainingSettings(long_rows="truncate"))
    assert account.left_out == {"no_output": 1, "without_target": 1}
    assert account.noted == {"answer_cut": 1, "special_in_text": 1, "truncated": 2}
    assert (account.came, account.used) == (5, 3)
    dropped = encode(whole, PLAIN, TOKENIZER, TrainingSettings(max_length=20), where="x").counts
    account = dropped.account(TrainingSettings())
    assert account.left_out == {"no_output": 1, "too_long": 2} and account.noted == {"special_in_text": 1}
    counted = RowCounts(rows=9, used=1, too_long=0, without_target=2, no_output=1, refused=5, seam=1, untaught=1).account(
        TrainingSettings()
    )
    assert counted.left_out == {"no_output": 1, "without_target": 2, "template_changes_spelling": 5}
    assert counted.noted == {"seam": 1, "earlier_untaught": 1}


def test_an_answer_that_was_cut_is_taught_without_an_end():
    rows = table({"instruction": "a", "output": "bc"}, {"instruction": "a", "output": "bc"}, {"instruction": "a", "output": "bc"})
    found = encode(
        rows.append_column("finish_reason", pa.array(["length", "stop", ""])), PLAIN, TOKENIZER, TrainingSettings(), where="x"
    )
    assert found.targets.tolist() == [2, 3, 3] and [int(found.ids(n)[-1] == TOKENIZER.eos_token_id) for n in range(3)] == [
        0,
        1,
        1,
    ]
    assert found.prompts.tolist() == [4, 4, 4] and found.lengths.tolist() == [6, 7, 7]


def test_rows_without_an_answer_are_kept_only_where_they_are_wanted():
    rows = ({"instruction": "a", "output": ""}, {"instruction": "a", "output": "b"})
    assert encoded(*rows).places.tolist() == [1] and encoded(*rows, unanswered=True).places.tolist() == [0, 1]
    assert encoded(*rows, unanswered=True).targets.tolist() == [1, 2]


def test_more_rows_than_are_encoded_at_once_keep_their_places(monkeypatch):
    from cft_ray.training import examples

    monkeypatch.setattr(examples, "ROWS_AT_ONCE", 3)
    rows = [{"instruction": str(n), "output": "" if n % 4 == 1 else "x"} for n in range(11)]
    found = encoded(*rows)
    assert found.places.tolist() == [n for n in range(11) if n % 4 != 1]
    assert [TOKENIZER.decode(found.ids(place)[1:2]) for place in range(len(found))] == [
        str(n)[:1] for n in range(11) if n % 4 != 1
    ]


def test_what_is_saved_is_mapped(tmp_path):
    found = encoded({"instruction": "a", "output": "b"}, {"instruction": "abc", "output": "d"})
    found.save(tmp_path / "deep")
    again = Examples.load(tmp_path / "deep")
    for name in ("tokens", "offsets", "taught", "places"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
        assert isinstance(getattr(again, name), np.memmap)
    assert again.counts == found.counts and len(again) == 2 and again.tokens.dtype == np.int32


@pytest.mark.parametrize("padding", ["free", "padded"])
def test_a_batch_by_hand(padding):
    found = encoded({"instruction": "abc", "output": "d"}, {"instruction": "", "output": "ef"})
    batch = collate(found, [0, 1], padding=padding, pad_id=2).to(torch.device("cpu"))
    first, second = found.ids(0).tolist(), found.ids(1).tolist()
    assert (len(first), len(second), batch.tokens) == (8, 4, 12)
    starts = (0, 8)
    assert batch.labels.tolist() == [*first[6:], *second[1:]]
    assert batch.predictors.tolist() == [5, 6, *(starts[1] + place for place in (0, 1, 2))]
    if padding == "free":
        assert batch.input_ids.tolist() == [[*first, *second]] and batch.position_ids.tolist() == [[*range(8), *range(4)]]
        assert batch.mask is None and batch.layout is not None and batch.layout.offsets.tolist() == [0, 8, 12]
    else:
        assert batch.input_ids.tolist() == [first, [*second, 2, 2, 2, 2]] and batch.layout is None and batch.mask is not None
        assert batch.mask.tolist() == [[1] * 8, [1] * 4 + [0] * 4] and batch.position_ids.tolist() == [[*range(8)]] * 2
    nothing = collate(found, [], padding=padding, pad_id=2)
    assert nothing.tokens == 0 and nothing.input_ids.tolist() == [[2]] and len(nothing.labels) == len(nothing.predictors) == 0
    assert (nothing.mask is None) == (padding == "free") == (nothing.layout is not None)
    assert nothing.position_ids.tolist() == [[0]]
