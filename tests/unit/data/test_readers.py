"""Files are read rightly, or refused with file and line; nothing else comes out, whatever the bytes."""

import bz2
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cft_ray.data.readers import BATCH, Wanted, as_text, column_names, read_file, require_columns
from cft_ray.data.records import ending
from cft_ray.errors import UserError

BOTH = Wanted(("question", "answer"))
LONG = "long text, " * 20_000  # 220,000 characters


def read(path: Path, wanted: Wanted = BOTH) -> list[dict[str, str | None]]:
    return [row for table in read_file(str(path), wanted) for row in table.to_pylist()]


def refused(path: Path, wanted: Wanted = BOTH) -> str:
    with pytest.raises(UserError) as raised:
        read(path, wanted)
    assert path.name in str(raised.value.where)
    return str(raised.value)


def packed(ending: str, data: bytes) -> bytes:
    if ending == ".gz":
        return gzip.compress(data)
    if ending == ".bz2":
        return bz2.compress(data)
    return pa.compress(data, codec={".zst": "zstd", ".lz4": "lz4"}[ending], asbytes=True)


def save(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


LINE = '{"question": "q", "answer": "a"}\n'


class TestCsv:
    def test_a_quoted_field_of_any_length_is_read(self, tmp_path):
        rows = read(save(tmp_path / "a.csv", f'question,answer\nq,"{LONG}"\n'))
        assert rows == [{"question": "q", "answer": LONG}]

    @pytest.mark.parametrize(("row", "fields"), [("q,apples, pears", 3), ("q", 1), ('q,"a",', 3)])
    def test_a_row_that_has_not_the_headers_fields_is_refused_with_its_line(self, tmp_path, row, fields):
        text = f'question,answer\nq,"two\nlines"\n{row}\n'
        assert f"line 4: {fields} fields where the header has 2" in refused(save(tmp_path / "a.csv", text))

    def test_a_column_named_twice(self, tmp_path):
        said = refused(save(tmp_path / "a.csv", "question,answer,answer\nq,a,b\n"))
        assert "line 1" in said and "'answer' 2 times" in said

    def test_blank_lines_quotes_and_line_breaks(self, tmp_path):
        text = '\ufeffquestion,answer\r\n"a ""b"", c","x\r\ny"\r\n\r\nq,a\r\n'
        assert read(save(tmp_path / "a.csv", text)) == [
            {"question": 'a "b", c', "answer": "x\r\ny"},
            {"question": "q", "answer": "a"},
        ]

    def test_a_header_alone_has_no_rows_and_its_columns_are_checked(self, tmp_path):
        assert read(save(tmp_path / "a.csv", "question,answer\n")) == []
        assert "no column 'answer'" in refused(save(tmp_path / "b.csv", "question\n"))


class TestText:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "b.json", "a.csv"])
    def test_a_byte_order_mark_is_skipped(self, tmp_path, name):
        text = {"a.csv": "question,answer\nq,a\n", "b.json": f"[{LINE}]"}.get(name, LINE)
        assert read(save(tmp_path / name, "\ufeff" + text)) == [{"question": "q", "answer": "a"}]

    def test_files_with_marks_may_be_joined(self, tmp_path):
        assert len(read(save(tmp_path / "a.jsonl", ("\ufeff" + LINE) * 2))) == 2

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
    def test_utf_16_is_named(self, tmp_path, name, encoding):
        assert "UTF-16" in refused(save(tmp_path / name, LINE.encode(encoding)))

    def test_data_under_another_name_is_told(self, tmp_path):
        assert "must end in .gz" in refused(save(tmp_path / "a.jsonl", gzip.compress(LINE.encode())))
        pq.write_table(pa.table({"question": ["q"]}), tmp_path / "b.csv")
        assert "must end in .parquet" in refused(tmp_path / "b.csv")

    @pytest.mark.parametrize("ending", [".gz", ".bz2"])
    def test_packed_files_whole_cut_and_of_another_kind(self, tmp_path, ending):
        rows = "".join(json.dumps({"question": str(n), "answer": str(n * n)}) + "\n" for n in range(5000)).encode()
        whole = packed(ending, rows)
        assert len(read(save(tmp_path / f"a.jsonl{ending}", whole))) == 5000
        assert len(read(save(tmp_path / f"two.jsonl{ending}", whole * 2))) == 10_000
        for number, data in enumerate((whole[:-3], whole[: len(whole) // 2], b"no such data", whole + b"rest")):
            said = refused(save(tmp_path / f"{number}.jsonl{ending}", data))
            assert "cut short, or no" in said and "fetch or write it again" in said

    @pytest.mark.parametrize("codec", ["zstd", "lz4"])
    def test_packed_by_arrow(self, tmp_path, codec):
        ending = {"zstd": "zst", "lz4": "lz4"}[codec]
        with pa.OSFile(str(tmp_path / "raw"), "wb") as raw, pa.CompressedOutputStream(raw, codec) as sink:
            sink.write(LINE.encode() * 1000)
        whole = (tmp_path / "raw").read_bytes()
        assert len(read(save(tmp_path / f"a.jsonl.{ending}", whole))) == 1000
        assert "cut short" in refused(save(tmp_path / f"b.jsonl.{ending}", whole[:-3]))

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.jsonl.gz"])
    def test_an_empty_file_is_refused(self, tmp_path, name):
        assert "the file is empty" in refused(save(tmp_path / name, b""))

    def test_nul_characters_are_characters(self, tmp_path):
        assert read(save(tmp_path / "a.csv", "question,answer\nq,a\0b\n"))[0]["answer"] == "a\0b"
        assert read(save(tmp_path / "a.jsonl", '{"question": "q", "answer": "a\\u0000b"}\n'))[0]["answer"] == "a\0b"


class TestJson:
    @pytest.mark.parametrize(
        ("value", "wanted"),
        [
            (r'"cut emoji \ud83d"', r"line 2: 'answer' has half of a character, '\ud83d', at 10"),
            (r'"\ude00 reversed \ud83d"', r"line 2: 'answer' has half of a character, '\ude00', at 0"),
            ("NaN", "line 2: 'answer' is a float"),
            ("-Infinity", "line 2: 'answer' is a float"),
            ("1.5", "line 2: 'answer' is a float"),
            ("true", "line 2: 'answer' is a bool"),
            ('{"text": "a"}', "line 2: 'answer' is a dict"),
            ("9" * 5000, "line 2: broken JSON"),
            ("[" * 100_000 + "]" * 100_000, "line 2: broken JSON"),
            ('"a", "answer": "b"', "line 2: broken JSON (the key 'answer' stands twice"),
        ],
    )
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
    def test_values_that_are_no_text(self, tmp_path, name, value, wanted):
        assert wanted in refused(save(tmp_path / name, LINE + f'{{"question": "q", "answer": {value}}}\n'))

    def test_whole_numbers_and_whole_pairs_are_text(self, tmp_path):
        text = '{"question": 123456789012345678901234567890, "answer": "\\ud83d\\ude00"}'
        assert read(save(tmp_path / "a.jsonl", text)) == [{"question": "1" + "23456789012345678901234567890", "answer": "😀"}]

    def test_a_key_may_come_late(self, tmp_path):
        late = '{"question": "q", "answer": "a", "extra": "x"}\n'
        path = save(tmp_path / "a.jsonl", '{"question": "q"}\n' * 9000 + late)
        rows = read(path, Wanted(("question", "extra")))
        assert (rows[0]["extra"], rows[9000]["extra"], len(rows)) == (None, "x", 9001)

    def test_the_columns_found_are_those_of_the_whole_file(self, tmp_path):
        late = '{"question": "q", "answer": "a", "extra": "x"}\n'
        said = refused(save(tmp_path / "a.jsonl", LINE * 9000 + late), Wanted(("question", "absent")))
        assert "'question', 'answer', 'extra'" in said


class TestColumns:
    def test_advice_never_names_a_column_that_is_mapped(self):
        with pytest.raises(UserError) as raised:
            require_columns(["instruction", "output"], ["instruction", "input", "output"], "file")
        assert "map it to" not in str(raised.value) and "leave out" in str(raised.value)
        with pytest.raises(UserError, match="map it to 'Inputs'"):
            require_columns(["instruction", "output", "Inputs"], ["instruction", "input", "output"], "file")

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.json"])
    def test_an_optional_column_may_be_absent(self, tmp_path, name):
        if name == "a.parquet":
            pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), tmp_path / name)
        else:
            save(tmp_path / name, "question,answer\nq,a\n" if name == "a.csv" else f"[{LINE}]" if name == "a.json" else LINE)
        wanted = Wanted(("question", "hint", "answer"), optional=frozenset({"hint"}))
        assert read(tmp_path / name, wanted) == [{"question": "q", "hint": None, "answer": "a"}]
        assert column_names(str(tmp_path / name)) == ["question", "answer"]
        assert "no column 'hint'" in refused(tmp_path / name, Wanted(("question", "hint", "answer")))

    def test_lists_are_given_as_json_where_they_are_wanted(self, tmp_path):
        turns = [{"role": "user", "content": "ä"}, {"role": "assistant", "content": "b"}]
        pq.write_table(pa.table({"turns": [turns, None]}), tmp_path / "a.parquet")
        save(tmp_path / "a.jsonl", json.dumps({"turns": turns}) + "\n" + json.dumps({"turns": None}))
        wanted = Wanted(("turns",), lists=frozenset({"turns"}))
        for name in ("a.parquet", "a.jsonl"):
            first, second = read(tmp_path / name, wanted)
            assert json.loads(first["turns"] or "") == turns and second["turns"] is None
            assert "format: messages" in refused(tmp_path / name, Wanted(("turns[0]",)))


def bad_text(*values: bytes) -> pa.Array:
    """Bytes that call themselves text, as some writers leave them."""
    return pa.array(values, pa.binary()).cast(pa.binary()).view(pa.string())


class TestParquet:
    @pytest.mark.parametrize("dictionary", [True, False])
    def test_bytes_that_are_no_utf_8_are_named_with_column_and_row(self, tmp_path, dictionary):
        answers = bad_text(*[b"fine"] * 9000, b"caf\xe9", b"fine")
        pq.write_table(pa.table({"question": ["q"] * 9002, "answer": answers}), tmp_path / "a.parquet", use_dictionary=dictionary)
        said = refused(tmp_path / "a.parquet")
        assert "a.parquet: row 9001: byte 0xe9 at 3 in column 'answer' is no UTF-8" in said

    def test_a_column_that_is_there_twice(self, tmp_path):
        table = pa.table([pa.array(["q"]), pa.array(["a"]), pa.array(["b"])], names=["question", "answer", "answer"])
        pq.write_table(table, tmp_path / "a.parquet")
        assert "2 columns are called 'answer'" in refused(tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet", Wanted(("question",))) == [{"question": "q"}]

    @pytest.mark.parametrize(
        "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()], ids=str
    )
    def test_every_type_of_text_is_text(self, tmp_path, kind):
        column = pa.array(["a", None, LONG]).cast(kind) if kind != pa.string_view() else pa.array(["a", None, LONG], kind)
        pq.write_table(pa.table({"question": ["1", "2", "3"], "answer": column}), tmp_path / "a.parquet")
        assert [row["answer"] for row in read(tmp_path / "a.parquet")] == ["a", None, LONG]

    @pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 1)], ids=str)
    def test_an_item_of_every_type_of_list(self, tmp_path, kind):
        pq.write_table(pa.table({"turns": pa.array([["a"], None], kind)}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet", Wanted(("turns[0]",))) == [{"turns[0]": "a"}, {"turns[0]": None}]

    def test_whole_numbers_are_text_and_others_are_refused(self, tmp_path):
        pq.write_table(pa.table({"question": pa.array([1, 2**40]), "answer": [1.5, 2.5]}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet", Wanted(("question",)))[1] == {"question": str(2**40)}
        assert "'answer' is double" in refused(tmp_path / "a.parquet")


ENDINGS = [".jsonl", ".json", ".csv", ".jsonl.gz", ".csv.zst", ".json.bz2", ".jsonl.lz4"]
PIECES = st.sampled_from(
    [
        *(
            b'{"question": "q", ',
            b'"answer": ',
            b'"a"}',
            b"question,answer\n",
            b"q,a\n",
            b'"',
            b"\xef\xbb\xbf",
            b"\xff",
            b"\\ud800",
        ),
        *(b"NaN", b"[", b"]", b"{", b"}", b"\r", b"\n", b"\0", b"1e999", b",", b"null", b"9" * 4400, b"\x1f\x8b", b"PAR1"),
    ]
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def only_rows_or_user_errors(path: Path) -> None:
    try:
        for table in read_file(str(path), BOTH):
            assert table.column_names == ["question", "answer"]
            table.validate(full=True)
            table.to_pylist()
    except UserError as error:
        assert path.name in str(error.where)
        str(error).encode()  # it can be printed


@settings(deadline=None, max_examples=150)
@example(ending=".jsonl", data=b"", pack=False)
@example(ending=".csv", data=b'"\n', pack=False)
@given(
    ending=st.sampled_from(ENDINGS),
    data=st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=12).map(b"".join)),
    pack=st.booleans(),
)
def test_whatever_the_bytes_only_rows_or_user_errors_come_out(scratch: Path, ending: str, data: bytes, pack: bool) -> None:
    last = Path("x" + ending).suffix
    only_rows_or_user_errors(save(scratch / f"x{ending}", packed(last, data) if pack and last in (".gz", ".bz2") else data))


@settings(deadline=None, max_examples=150)
@given(place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.floats(0.01, 1))
def test_damaged_parquet_gives_rows_or_user_errors(scratch: Path, place: float, byte: int, cut: float) -> None:
    whole = scratch / "whole.parquet"
    if not whole.exists():
        pq.write_table(pa.table({"question": ["q", "r"] * 50, "answer": [f"text {n}" for n in range(100)]}), whole)
    data = bytearray(whole.read_bytes())
    data[min(int(place * len(data)), len(data) - 1)] = byte
    only_rows_or_user_errors(save(scratch / "x.parquet", bytes(data if cut > 0.5 else data[: int(cut * len(data))])))


class TestTables:
    """Files come in tables of 8,192 rows, numbered through."""

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
    def test_rows_of_a_table(self, tmp_path, name):
        rows = [{"question": str(n), "answer": "a"} for n in range(8193)]
        if name == "a.parquet":
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        elif name == "a.csv":
            save(tmp_path / name, "question,answer\n" + "".join(f"{n},a\n" for n in range(8193)))
        else:
            text = [json.dumps(row) for row in rows]
            save(tmp_path / name, "\n".join(text) if name == "a.jsonl" else f"[{','.join(text)}]")
        tables = list(read_file(str(tmp_path / name), BOTH))
        assert [table.num_rows for table in tables] == [8192, 1] and tables[1]["question"].to_pylist() == ["8192"]

    def test_columns_come_in_the_order_that_is_asked_for(self, tmp_path):
        save(tmp_path / "a.jsonl", LINE)
        pq.write_table(pa.table({"question": ["q"], "more": ["m"], "answer": ["a"]}), tmp_path / "a.parquet")
        for name in ("a.jsonl", "a.parquet"):
            (table,) = read_file(str(tmp_path / name), Wanted(("answer", "question")))
            assert table.to_pydict() == {"answer": ["a"], "question": ["q"]} and table.column_names == ["answer", "question"]


class TestPlaces:
    """A message names the line or row that is to blame."""

    @pytest.mark.parametrize(
        ("name", "data", "place"),
        [
            ("a.jsonl", LINE.encode() + b"\n" + LINE.replace("a", "\xe4").encode("latin-1"), "line 3: byte 0xe4 at 19"),
            ("a.jsonl", LINE.encode() * 2 + b"[1]\n", "line 3: a list"),
            ("a.json", f"[{LINE}, 3]".encode(), "row 2: a int"),
            ("a.csv", b"question,answer\nq,a\nq,\xe4\n", "line 3: byte 0xe4 at 2"),
            ("a.csv", b"question,\xe4\nq,a\n", "line 1: byte 0xe4 at 9"),
            ("a.csv", b'question,answer\nq,a\n"q"x,a\n', "line 3: broken CSV"),
            ("a.csv", b'"question"x,answer\nq,a\n', "line 1: broken CSV"),
        ],
    )
    def test_the_line_is_named(self, tmp_path, name, data, place):
        assert f"{name}: {place}" in refused(save(tmp_path / name, data))

    def test_a_header_is_read_as_strictly_as_its_rows(self, tmp_path):
        for data, place in ((b"question,\xe4\n", "line 1: byte 0xe4 at 9"), (b'"q"x,answer\n', "line 1: broken CSV")):
            with pytest.raises(UserError) as raised:
                column_names(str(save(tmp_path / "a.csv", data)))
            assert f"a.csv: {place}" in str(raised.value)

    def test_undecodable_bytes_behind_a_mark_are_counted_from_the_text(self, tmp_path):
        assert "byte 0xe4 at 2 is no" in refused(save(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"\xe4'))


class TestFormats:
    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (bz2.compress(b"x"), "must end in .bz2"),
            (packed(".zst", b"x" * 99), "must end in .zst"),
            (b"\x04\x22\x4d\x18rest", "must end in .lz4"),
            (b"PAR1", "must end in .parquet"),
            (b"\xff\xfea\0", "UTF-16"),
            (b"a\0b\0", "UTF-16"),
            (b"\0ab", "UTF-16"),
        ],
    )
    def test_what_files_begin_with(self, tmp_path, data, what):
        said = refused(save(tmp_path / "a.jsonl", data))
        assert what in said and ("convert the file" in said) == ("UTF-16" in what)

    @pytest.mark.parametrize("data", [b"\0\0ab", b"\0", b"ab", b"a"])
    def test_what_is_no_utf_16(self, tmp_path, data):
        assert "UTF-16" not in refused(save(tmp_path / "a.jsonl", data))

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("a.txt", "files ending in '.txt' are not read"),
            ("a.txt.gz", "files ending in '.txt' are not read"),
            ("a.gz", "no ending that says its format"),
            ("a", "no ending that says its format"),
        ],
    )
    def test_other_endings_are_refused(self, tmp_path, name, what):
        assert what in refused(save(tmp_path / name, LINE))

    def test_endings_in_capitals_and_of_other_names(self, tmp_path):
        for name in ("a.JSONL", "b.ndjson"):
            assert read(save(tmp_path / name, LINE)) == [{"question": "q", "answer": "a"}]
        assert read(save(tmp_path / "c.JSONL.GZ", gzip.compress(LINE.encode())))
        assert ending("s3://bucket/x.csv.zst") == ".csv" and ending("what?.jsonl") == ".jsonl"

    def test_json_that_is_one_array_or_an_object_a_line(self, tmp_path):
        row = {"question": "q", "answer": "a"}
        for text, count in (("[]", 0), (f" \n\t[{LINE},{LINE}]", 2), (LINE + "\n \n" + LINE, 2), (f"\ufeff\r\n[{LINE}]", 1)):
            assert read(save(tmp_path / "a.json", text)) == [row] * count
        assert "broken JSON" in refused(save(tmp_path / "a.json", f"[{LINE}"))


class TestValues:
    def test_numbers_are_written_out_and_truth_is_not(self, tmp_path):
        assert read(save(tmp_path / "a.jsonl", '{"question": -7, "answer": null}')) == [{"question": "-7", "answer": None}]
        long = "9" * 4300
        assert read(save(tmp_path / "a.jsonl", f'{{"question": {long}, "answer": ""}}')) == [{"question": long, "answer": ""}]

    def test_items_of_lists_in_json(self, tmp_path):
        save(tmp_path / "a.jsonl", '{"t": ["a", "b"]}\n{"t": ["c"]}\n{"t": []}\n{"t": "text"}\n{}\n')
        (table,) = read_file(str(tmp_path / "a.jsonl"), Wanted(("t[0]", "t[1]")))
        assert table["t[0]"].to_pylist() == ["a", "c", None, "text", None]
        assert table["t[1]"].to_pylist() == ["b", None, None, "text", None]

    @pytest.mark.parametrize("kind", [pa.list_view(pa.string()), pa.large_list_view(pa.string())], ids=str)
    def test_views_of_lists_are_lists(self, kind):
        table = pa.table({"turns": pa.array([["a"], None, []], kind)})
        found = as_text(table, Wanted(("turns[0]", "turns"), lists=frozenset({"turns"})), "x")
        assert found["turns[0]"].to_pylist() == ["a", None, None] and found["turns"].to_pylist() == ['["a"]', None, "[]"]

    def test_a_column_of_nulls_is_text_and_one_of_truths_is_not(self):
        assert as_text(pa.table({"a": pa.nulls(2)}), Wanted(("a",)), "x")["a"].to_pylist() == [None, None]
        for values in (pa.array([True]), pa.array([1.5]), pa.array([b"x"]), pa.array([True]).dictionary_encode()):
            with pytest.raises(UserError, match="not text"):
                as_text(pa.table({"a": values}), Wanted(("a",)), "x")
        twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["a", "a"])
        with pytest.raises(UserError, match="2 columns are called 'a'"):
            as_text(twice, Wanted(("a",)), "x")

    def test_bytes_that_are_no_text_are_named_with_their_row(self):
        chunks = pa.chunked_array([pa.array(["a", "b"]), bad_text(b"c", b"d\xff")])
        with pytest.raises(UserError, match="byte 0xff at 1 in column 'a' is no UTF-8") as raised:
            as_text(pa.table({"a": chunks}), Wanted(("a",)), "file", first=11)
        assert raised.value.where == "file: row 14"

    def test_half_a_character_inside_of_a_list_is_refused_as_any_other(self, tmp_path):
        save(tmp_path / "a.jsonl", '{"turns": ["ok"]}\n{"turns": [{"content": "cut \\ud83d"}]}\n')
        said = refused(tmp_path / "a.jsonl", Wanted(("turns",), lists=frozenset({"turns"})))
        assert r"line 2: 'turns' has half of a character, '\ud83d'" in said


def test_what_is_no_file_is_named_and_never_opened(tmp_path, bucket):
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")  # whoever opened it would wait for ever
    bucket.put("data/rows.jsonl", b"")
    for location, what in (
        (f"{tmp_path}/folder.jsonl", "this is a folder"),
        (f"{tmp_path}/pipe.jsonl", "no regular file"),
        (f"{tmp_path}/pipes.jsonl", "no such file"),
        ("s3://bucket/data/row.jsonl", "no such file"),
    ):
        with pytest.raises(UserError, match=what) as raised:
            list(read_file(location, Wanted(("a",))))
        assert raised.value.where == location and ("no such" not in what or "nearest name" in str(raised.value.fix))


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv", "jsonl.gz"])
def test_a_bucket_s_files_are_read_as_those_of_a_folder(tmp_path, bucket, ending):
    rows = [{"a": f"row {number}", "b": str(number)} for number in range(3 * BATCH)]
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
    elif ending == "csv":
        path.write_text("a,b\n" + "".join(f"{row['a']},{row['b']}\n" for row in rows))
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    bucket.put(f"data/{path.name}", path.read_bytes())
    there = pa.concat_tables(read_file(f"s3://bucket/data/{path.name}", Wanted(("b", "a"))))
    assert there.to_pylist() == [{"b": row["b"], "a": row["a"]} for row in rows]
    assert there == pa.concat_tables(read_file(str(path), Wanted(("b", "a"))))
