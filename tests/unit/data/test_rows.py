import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cft_ray.data.rows import (
    COLUMNS,
    FILE,
    SCHEMA,
    count_by_language,
    dictionaries,
    dump_turns,
    load_turns,
    read_rows,
    table,
    validate,
    write_rows,
)
from cft_ray.errors import UserError

ROWS = [
    {"id": "a", "language": "de", "instruction": "Zähle", "output": "1"},
    {"id": "b", "language": "en", "instruction": "Count", "input": "\U0001f600", "output": "2"},
    {"id": "c", "language": "de", "instruction": "x", "output": "3"},
]


def test_written_rows_are_read_back_in_order(tmp_path: Path) -> None:
    rows = table(ROWS)
    assert write_rows(tmp_path / FILE, [rows.slice(0, 2), rows.slice(2)]) == 3
    assert read_rows(tmp_path).equals(rows)
    assert read_rows(tmp_path / FILE).equals(rows)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_further_columns_are_kept_in_the_file_and_not_seen_by_readers(tmp_path: Path) -> None:
    wide = table(ROWS).append_column(pa.field("pass", pa.int32()), pa.array([0, 0, 1], pa.int32()))
    write_rows(tmp_path / FILE, [wide], wide.schema)
    assert pq.read_schema(tmp_path / FILE).names == [*COLUMNS, "pass"]
    assert read_rows(tmp_path).schema.equals(SCHEMA)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def batches():
        yield table(ROWS)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_rows(tmp_path / FILE, batches())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_like_a_partition_does_not_become_a_column(tmp_path: Path) -> None:
    folder = tmp_path / "language=fr"
    folder.mkdir()
    write_rows(folder / FILE, [table(ROWS)])
    assert read_rows(folder).column("language").to_pylist() == ["de", "en", "de"]


def test_languages_are_counted_in_order_of_appearance() -> None:
    assert list(count_by_language(table(ROWS)).items()) == [("de", 2), ("en", 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop_columns(["input"]), "no column 'input'"),
        (lambda rows: rows.slice(0, 0), "empty"),
        (lambda rows: pa.concat_tables([rows, rows]), "'a' occurs more than once"),
        (lambda rows: rows.set_column(5, "output", pa.array([1, 2, 3])), "int64"),
        (lambda rows: rows.set_column(5, "output", pa.array(["1", None, "3"])), "1 nulls"),
    ],
)
def test_what_is_not_canonical_is_refused(change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(change(table(ROWS)), "x.parquet")


def test_a_file_that_is_not_there_or_not_parquet_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path)
    (tmp_path / FILE).write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a readable Parquet"):
        read_rows(tmp_path)


def test_earlier_turns_come_back_as_they_were() -> None:
    turns = [{"role": "user", "content": 'Say "hé"\n'}, {"role": "assistant", "content": ""}]
    assert load_turns(dump_turns(turns)) == turns
    assert (dump_turns([]), load_turns("")) == ("", [])


@pytest.mark.parametrize("roles", [["assistant", "user"], ["user"], ["user", "user"], ["system", "assistant"]])
def test_turns_out_of_order_are_refused(roles: list[str]) -> None:
    with pytest.raises(ValueError, match="turn"):
        dump_turns([{"role": role, "content": "x"} for role in roles])


def test_tables_without_the_column_of_turns_have_none(tmp_path: Path) -> None:
    write_rows(tmp_path / FILE, [table(ROWS)], pa.schema([field for field in SCHEMA if field.name != "turns"]))
    assert read_rows(tmp_path).equals(table(ROWS))


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([{"role": "user", "content": "a", "name": "b"}], "turn 1 is"),
        ([{"role": "user", "content": "a"}, {"role": "assistant"}], "turn 2 is"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "turn 2 is no text"),
        ([{"role": "user", "content": 3}], "turn 1 is no text"),
        ([{"role": "user", "content": "a"}], "not the assistant's"),
    ],
)
def test_turns_of_another_shape_are_refused_when_written_and_when_read(turns: list[dict], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        dump_turns(turns)
    with pytest.raises(ValueError, match=what):
        load_turns(json.dumps(turns))


@pytest.mark.parametrize("text", ["{}", "[1]", '"a"', "3", '[{"role": "user", "content": "a"}, 3]'])
def test_what_is_no_list_of_turns_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a JSON list of objects"):
        load_turns(text)


def test_rows_without_a_name_or_a_language_are_no_rows() -> None:
    for column in ("id", "language"):
        with pytest.raises(KeyError):
            table([{name: value for name, value in ROWS[0].items() if name != column}])
    with pytest.raises(pa.ArrowTypeError):
        table([{**ROWS[0], "output": 3}])  # pyright: ignore[reportArgumentType]
    assert table([ROWS[0]]).to_pylist() == [dict.fromkeys(COLUMNS, "") | ROWS[0]]


def test_rows_as_mappings_without_what_is_not_theirs() -> None:
    wide = table(ROWS).append_column("pass", pa.array([0, 0, 1])).drop_columns(["turns"])
    assert [row["id"] for row in dictionaries(wide)] == ["a", "b", "c"]
    assert list(dictionaries(wide)[0]) == [name for name in COLUMNS if name != "turns"]


def test_large_text_is_text_and_nulls_are_counted(tmp_path: Path) -> None:
    large = table(ROWS).cast(pa.schema([pa.field(name, pa.large_string()) for name in COLUMNS]))
    validate(large, "x")
    pq.write_table(large, tmp_path / FILE)
    assert read_rows(tmp_path).equals(table(ROWS))
    with pytest.raises(UserError, match="no column 'id'"):
        validate(table(ROWS).drop_columns(["id"]), "x")
