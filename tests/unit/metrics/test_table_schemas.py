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


# The contract with those who read the tables: every other column has a value in each row.
MAY_BE_EMPTY = {
    "cells": "phase ability benchmark skipped",
    "stages": "grid label start end seconds node devices gpu_seconds cpu_seconds error versions outputs",
    "steps": "epoch lr grad_norm tokens target_tokens samples seconds tokens_per_s mfu peak_memory",
    "scores": "value stderr n",
    "samples": "cluster target response",
    "similarity": "layer projection head language",
    "layers": "prompts language n mean variance frobenius spectral",
    "replay": "language",
    "rows": "label reason share found",
}


def test_only_these_columns_may_be_empty():
    found = {name: " ".join(field.name for field in schema if field.nullable) for name, schema in SCHEMAS.items()}
    assert found == MAY_BE_EMPTY


@pytest.mark.parametrize(
    ("given", "wanted", "fits"),
    [
        (pa.array([1.0], pa.float32()), "value", True),
        (pa.array([1], pa.int32()), "n", True),
        (pa.array([1.0]), "n", False),
        (pa.array(["t"], pa.large_string()), "task", True),
        (pa.array(["t"], pa.string_view()), "task", True),
        (pa.array(["t"]).dictionary_encode(), "task", True),
        (pa.array([1]), "task", False),
        (pa.array([None], pa.null()), "n", True),
    ],
)
def test_narrower_and_other_forms_of_a_type_are_taken(given, wanted, fits):
    others = table_of("scores", [SCORE | {"n": 1}])
    table = others.set_column(others.column_names.index(wanted), wanted, given)
    if fits:
        assert table_of("scores", table)[wanted].to_pylist() == given.to_pylist()
    else:
        with pytest.raises(UserError, match=wanted):
            table_of("scores", table)


@pytest.mark.parametrize(
    ("given", "column", "fits"),
    [
        (pa.array([[0.5]], pa.large_list(pa.float32())), "mean", True),
        (pa.array([[0.5]], pa.list_view(pa.float64())), "mean", False),
        (pa.array([0.5]), "mean", False),
        (pa.array([1], pa.int64()), "variance", True),
        (pa.array(["1"]), "variance", False),
    ],
)
def test_lists_come_in_any_layout(given, column, fits):
    table = pa.table({"model": ["m"], "layer": [0], column: given})
    if fits:
        assert table_of("layers", table)[column].to_pylist() == given.to_pylist()
    else:
        with pytest.raises(UserError, match=column):
            table_of("layers", table)


def test_times_of_any_zone_and_resolution_are_one_moment():
    moment = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    times = pa.array([moment], pa.timestamp("ms", tz="Europe/Berlin"))
    table = pa.table({"kind": ["x"], "status": ["done"], "start": times})
    assert table_of("stages", table)["start"].to_pylist() == [moment]
    with pytest.raises(UserError, match="start"):
        table_of("stages", table.set_column(2, "start", pa.array([1])))


def test_the_first_row_without_a_value_is_named_and_the_nearest_column():
    with pytest.raises(UserError, match="row 2 has null in 'language'"):
        table_of("scores", [SCORE, SCORE, SCORE | {"language": None}, SCORE | {"language": None}])
    with pytest.raises(UserError, match="row 1 has the unknown column 'languge'") as caught:
        table_of("scores", [SCORE, SCORE | {"languge": "en"}])
    assert "'language'" in str(caught.value.fix)
    with pytest.raises(UserError, match=r"e\.g\. '7'"):
        table_of("scores", [SCORE | {"value": None}, SCORE | {"value": "7"}])
    assert body_schema("scores").names == SCHEMAS["scores"].names[3:]
    with pytest.raises(UserError, match="scorez"):
        body_schema("scorez")


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
