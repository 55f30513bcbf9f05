import datetime as dt

import pyarrow as pa
import pytest

from cft_ray.errors import UserError
from cft_ray.metrics.schemas import KEY, SCHEMAS, body_schema, conform, described, keyed, table_of

SCORE = {"ability": "TA", "benchmark": "x", "task": "t", "language": "en", "metric": "acc", "shown": True, "value": 1}


def test_every_table_has_its_key_first_and_every_column_is_described():
    for schema in SCHEMAS.values():
        assert tuple(schema.names[:3]) == KEY
        assert all(described(field) for field in schema)
        assert not any(schema.field(column).nullable for column in KEY)


def test_rows_become_the_schema_with_nulls_where_a_column_is_left_out():
    table = table_of("scores", [SCORE, SCORE | {"stderr": 0.5, "n": 3}])
    assert table.schema.equals(body_schema("scores"), check_metadata=True)
    assert table["value"].to_pylist() == [1.0, 1.0]
    assert table["n"].to_pylist() == [None, 3]
    assert table_of("scores", table).equals(table)
    assert table_of("scores", []).schema.equals(body_schema("scores"))


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("scorez", SCORE),
        ("scores", SCORE | {"languge": "en"}),
        ("scores", SCORE | {"fingerprint": "f"}),
        ("scores", {key: value for key, value in SCORE.items() if key != "language"}),
        ("scores", SCORE | {"language": None}),
        ("scores", SCORE | {"value": "1"}),
        ("scores", SCORE | {"value": True}),
        ("scores", SCORE | {"value": object()}),
        ("scores", SCORE | {"n": 1.5}),
        ("scores", SCORE | {"n": 2**70}),
        ("scores", SCORE | {"shown": 1}),
        ("scores", SCORE | {"task": b"t"}),
        ("stages", {"kind": "x", "status": "done", "start": "yesterday"}),
        ("samples", {"benchmark": "b", "task": "t", "language": "en", "item": "1", "metrics": {"acc": 1.0}}),
    ],
)
def test_rows_that_do_not_fit_are_refused(table, row):
    with pytest.raises(UserError):
        table_of(table, [row])
    with pytest.raises(UserError):
        table_of(table, [SCORE, row] if table == "scores" else [row, row])


def test_values_of_several_types_in_one_column_are_refused():
    with pytest.raises(UserError):
        table_of("scores", [SCORE, SCORE | {"value": "1"}])


def test_nested_and_time_columns():
    metrics = [{"metric": "em", "value": 1}, {"metric": "f1", "value": 0.5}]
    key = {"benchmark": "b", "task": "t", "language": "en", "item": "1"}
    rows = table_of("samples", [key | {"metrics": metrics}, key | {"metrics": []}]).to_pylist()
    assert [row["metrics"] for row in rows] == [metrics, []]
    moment = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    (row,) = table_of("stages", [{"kind": "x", "status": "done", "start": moment}]).to_pylist()
    assert row["start"] == moment


def test_keyed_numbers_rows():
    table = keyed(table_of("scores", [SCORE] * 3), fingerprint="f", attempt=2, sequence=5)
    assert table.schema.equals(SCHEMAS["scores"])
    assert table.select(KEY).to_pylist() == [{"fingerprint": "f", "attempt": 2, "sequence": n} for n in (5, 6, 7)]


def test_an_older_file_lacks_nullable_columns_only():
    table = keyed(table_of("scores", [SCORE]), fingerprint="f", attempt=1, sequence=0)
    older = table.drop_columns(["n"]).append_column("gone", pa.array([1]))
    assert conform("scores", older, ["n", "value"]).to_pylist() == [{"n": None, "value": 1.0}]
    with pytest.raises(UserError):
        conform("scores", table.drop_columns(["attempt"]), list(KEY))
