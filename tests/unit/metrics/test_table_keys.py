import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cft_ray.metrics.keys import KeyRanges, merged
from cft_ray.metrics.schemas import KEY, SCHEMAS

RANGE = st.tuples(st.sampled_from("ab"), st.integers(1, 2), st.integers(0, 30), st.integers(0, 12))
"""fingerprint, attempt, start, length"""


def keys(ranges) -> set:
    return {(f, a, n) for f, a, start, length in ranges for n in range(start, start + length)}


def rows(keys) -> pa.Table:
    columns = list(zip(*keys, strict=True)) or [(), (), ()]
    schema = pa.schema([SCHEMAS["steps"].field(column) for column in KEY])
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


@settings(deadline=None)
@given(st.lists(RANGE), RANGE)
def test_missing_is_set_difference(added, asked):
    ranges = KeyRanges()
    for f, a, start, length in added:
        ranges.add(f, a, start, start + length)
    f, a, start, length = asked
    missing = list(ranges.missing(f, a, start, start + length))
    numbers = [n for first, last in missing for n in range(first, last)]
    assert numbers == sorted(n for _, _, n in keys([asked]) - keys(added))
    assert all(first < last for first, last in missing)
    assert len(ranges) == len(keys(added))


@settings(deadline=None)
@given(st.lists(RANGE), st.lists(RANGE))
def test_update_is_set_union(left, right):
    sets = KeyRanges(), KeyRanges()
    for ranges, items in zip(sets, (left, right), strict=True):
        for f, a, start, length in items:
            ranges.add(f, a, start, start + length)
    sets[0].update(sets[1])
    assert len(sets[0]) == len(keys(left) | keys(right))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 2), st.integers(0, 9)), max_size=40))
def test_rows_in_any_order_doubled_or_not(items):
    ranges = KeyRanges()
    ranges.add_rows(rows(items))
    assert len(ranges) == len(set(items))
    for f, a, n in items:
        assert not list(ranges.missing(f, a, n, n + 1))


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 2), st.integers(0, 9)), max_size=12), min_size=1))
def test_merged_has_each_key_once_in_order(tables):
    table = merged([rows(items) for items in tables])
    expected = sorted({item for items in tables for item in items})
    assert list(zip(*(table[column].to_pylist() for column in KEY), strict=True)) == expected
