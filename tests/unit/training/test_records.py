"""The records of a training's steps: as many as there are, in their order, whatever is kept as columns."""

import tracemalloc

import pytest

from cft_ray.errors import UserError
from cft_ray.training.records import AT_ONCE, StepRecords


def record(step: int) -> dict[str, float | int]:
    return {"step": step, "loss": 1 / step, "tokens": 3 * step, "seconds": 0.1}


@pytest.mark.parametrize("count", [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 2 * AT_ONCE + 5])
def test_they_come_back_as_they_were_appended(count):
    records = StepRecords()
    for step in range(1, count + 1):
        records.append(record(step))
    again = StepRecords(records.table())
    for found in (records, again):
        assert found.table().num_rows == count
        assert found.table()["step"].to_pylist() == list(range(1, count + 1))
        assert found.table()["loss"].to_pylist() == [1 / step for step in range(1, count + 1)]
        assert found.table()["tokens"].to_pylist() == [3 * step for step in range(1, count + 1)]
    again.append(record(count + 1))
    assert again.table()["step"].to_pylist() == list(range(1, count + 2)) and records.table().num_rows == count


def test_what_is_appended_later_changes_nothing():
    row = record(1)
    records = StepRecords()
    records.append(row)
    row["loss"] = 5.0
    assert records.table()["loss"].to_pylist() == [1.0]


def test_a_hundred_thousand_take_a_few_megabytes():
    tracemalloc.start()
    records = StepRecords()
    for step in range(1, 100_001):
        records.append(record(step))
    python = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert python < 4 * 2**20 and records.table().nbytes < 16 * 2**20


def test_a_column_that_the_table_lacks_is_refused():
    records = StepRecords()
    records.append({"step": 1, "loss": 1.0, "perplexity": 2.0})
    with pytest.raises(UserError, match="perplexity"):
        records.table()
