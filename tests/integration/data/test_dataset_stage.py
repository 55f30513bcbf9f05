"""The dataset stage on real files, good and hostile, and on the public data sets where they are at hand."""

import csv
import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alone import Alone

from cft_ray.data.accounts import RowAccount
from cft_ray.data.formats import FORMATS
from cft_ray.data.rows import read_rows
from cft_ray.errors import UserError
from cft_ray.plan.digest import Digests
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage
from cft_ray.stages.dataset import priorities, run

PUBLIC = Path(__file__).parents[4] / "shared" / "data"
ALPACA = FORMATS["alpaca"]


def account(came: int, used: int, **more: dict[str, int]) -> dict[str, Any]:
    return RowAccount(came=came, used=used, **more).checked("test").model_dump()  # pyright: ignore[reportArgumentType]


def stage(folder: Path, **spec: Any) -> tuple[dict[str, Any], pa.Table]:
    spec = {"columns": ALPACA, "languages": ("en",)} | spec
    context = Alone(folder / f"run{len(list(folder.glob('run*')))}", Stage(DatasetSpec(**spec)))
    outputs = run(context)
    json.dumps(outputs)
    assert list(context.scratch.iterdir()) == []
    return outputs, read_rows(context.output)


ROWS = [
    {"instruction": "Add", "input": "1 2", "output": "3"},
    {"instruction": "Grüße", "input": None, "output": "hé\nllo"},
    {"instruction": "Say", "input": "", "output": 'a "quoted", text'},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else path.open("w", encoding="utf-8") as file:
            file.write(text)
    return str(path)


@pytest.mark.parametrize("ending", [".parquet", ".json", ".jsonl", ".jsonl.gz", ".csv"])
def test_every_format_gives_the_same_rows_and_nulls_become_empty(tmp_path: Path, ending: str) -> None:
    outputs, rows = stage(tmp_path, files=write(tmp_path / f"data{ending}", ROWS))
    assert rows.column("instruction").to_pylist() == ["Add", "Grüße", "Say"]
    assert rows.column("input").to_pylist() == ["1 2", "", ""]
    assert rows.column("output").to_pylist() == ["3", "hé\nllo", 'a "quoted", text']
    assert rows.column("language").to_pylist() == ["en"] * 3
    assert outputs == {"rows": 3, "rows_by_language": {"en": 3}, "rows_read": 3, "account": account(3, 3)}


def test_languages_come_from_file_names_in_the_grids_order(tmp_path: Path) -> None:
    for language in ("de", "es", "fr"):
        write(tmp_path / f"{language}.jsonl", [{**ROWS[0], "output": language}])
    outputs, rows = stage(tmp_path, files=str(tmp_path / "{language}.jsonl"), languages=("es", "de"))
    assert rows.column("language").to_pylist() == rows.column("output").to_pylist() == ["es", "de"]
    assert outputs["rows_by_language"] == {"es": 1, "de": 1}


def test_several_files_of_a_pattern_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for part in ("b", "a", "c"):
        write(tmp_path / f"part-{part}.jsonl", [{**ROWS[0], "output": part}] * 2)
    _, rows = stage(tmp_path, files=str(tmp_path / "part-*.jsonl"))
    assert "".join(rows.column("output").to_pylist()) == "aabbcc"
    assert len(set(rows.column("id").to_pylist())) == 6


def test_a_json_file_may_hold_an_object_a_line(tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", ROWS)
    _, rows = stage(tmp_path, files=str((tmp_path / "data.jsonl").rename(tmp_path / "data.json")))
    assert rows.column("output").to_pylist() == [row["output"] for row in ROWS]


def test_uris_are_read_like_paths(tmp_path: Path) -> None:
    for language in ("de", "es"):
        for part in ("2", "1"):
            write(tmp_path / f"{language}-{part}.jsonl.gz", [{**ROWS[0], "output": language + part}])
    pattern = (tmp_path / "{language}-*.jsonl.gz").as_posix()
    outputs, rows = stage(tmp_path, files=f"file://{pattern}", languages=("de", "es"))
    assert rows.column("output").to_pylist() == ["de1", "de2", "es1", "es2"]
    assert outputs["rows"] == 4
    with pytest.raises(UserError, match="no file has such a name"):
        stage(tmp_path, files=f"file://{tmp_path}/nothing-*.csv")
    with pytest.raises(UserError, match="unknown scheme 'gopher'"):
        stage(tmp_path, files="gopher://x/data.csv")


def test_orca_columns_and_parallel_ids(tmp_path: Path) -> None:
    orca = [{"id": "niv.1", "system_prompt": "S", "question": "Q", "response": "R"}]
    for language in ("de", "es"):
        write(tmp_path / f"{language}.jsonl", orca)
    _, rows = stage(tmp_path, files=str(tmp_path / "{language}.jsonl"), columns=FORMATS["orca"], languages=("de", "es"))
    assert rows.column("id").to_pylist() == ["niv.1:de", "niv.1:es"]
    assert rows.column("system").to_pylist() == ["S", "S"]
    _, rows = stage(tmp_path, files=str(tmp_path / "de.jsonl"), columns=FORMATS["orca"])
    assert rows.column("id").to_pylist() == ["niv.1"]


def test_canonical_rows_can_be_read_again_and_other_languages_are_counted(tmp_path: Path) -> None:
    first, rows = stage(tmp_path, toy="multialpaca", columns={}, languages=("de", "es", "sw"), rows=5)
    pq.write_table(rows, tmp_path / "mine.parquet")
    outputs, again = stage(tmp_path, files=str(tmp_path / "mine.parquet"), columns=FORMATS["canonical"], languages=("sw", "de"))
    assert outputs["account"] == account(15, 10, set_aside={"other_language": 5})
    assert sorted(again.column("id").to_pylist()) == sorted(i for i in rows.column("id").to_pylist() if not i.endswith(":es"))
    assert first["rows_by_language"] == {"de": 5, "es": 5, "sw": 5}


def test_rows_that_teach_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = [
        {"instruction": " ", "input": "", "output": "x"},
        {"instruction": "Say", "input": "", "output": "\n"},
        {"instruction": "Say", "input": "", "output": None},
        {"instruction": None, "input": "a text", "output": "its title"},
    ]
    files = write(tmp_path / "data.jsonl", [*bad, *ROWS])
    outputs, rows = stage(tmp_path, files=files, allow_left_out=0.5)
    assert outputs["account"] == account(7, 4, left_out={"no_instruction": 1, "no_output": 2})
    with pytest.raises(UserError, match=r"3 of 7 rows .*42\.9 %.* 2 without an answer \(28\.6 %\)(.|\n)*allow_left_out=0\.43"):
        stage(tmp_path, files=files, allow_left_out=0.42)
    assert rows.num_rows == 4
    assert rows.column("id").to_pylist() == [f"en-{place:07d}" for place in (3, 4, 5, 6)]


def test_a_sample_is_seeded_keeps_order_and_is_part_of_a_larger_one(tmp_path: Path) -> None:
    files = write(tmp_path / "data.jsonl", [{"instruction": "n", "input": "", "output": str(n)} for n in range(20_000)])

    def sample(rows: int, seed: int = 0) -> list[int]:
        outputs, table = stage(tmp_path, files=files, rows=rows, seed=seed)
        assert outputs["rows"] == rows and outputs["rows_read"] == 20_000
        assert outputs["account"] == account(20_000, rows, set_aside={"not_in_sample": 20_000 - rows})
        return [int(text) for text in table.column("output").to_pylist()]

    small, large = sample(500), sample(5000)
    assert small == sorted(small) == sample(500)
    assert set(small) < set(large)
    assert sample(500, seed=1) != small
    # a fair sample's mean is within 5 standard errors: 20000 / sqrt(12 * 5000)
    assert abs(sum(large) / 5000 - 9999.5) < 5 * 20_000 / (12 * 5000) ** 0.5


def test_sampling_is_per_language_and_asks_for_no_more_than_there_is(tmp_path: Path) -> None:
    for language, count in (("de", 30), ("es", 5)):
        write(tmp_path / f"{language}.csv", [{**ROWS[0], "output": str(n)} for n in range(count)])
    outputs, rows = stage(tmp_path, files=str(tmp_path / "{language}.csv"), languages=("de", "es"), rows=10)
    assert outputs["rows_by_language"] == {"de": 10, "es": 5}
    assert rows.num_rows == 15


def test_priorities_are_these_numbers_on_every_machine() -> None:
    mask = 2**64 - 1

    def split_mix(state: int) -> int:
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    start = int(hashlib.sha256(b"sample/3/en").hexdigest()[:16], 16)
    expected = [split_mix((start + place * 0x9E3779B97F4A7C15) & mask) for place in range(1, 51)]
    assert priorities(3, "en", 50).tolist() == expected
    assert priorities(3, "en", 5).tolist() == expected[:5]
    # the generator's published first output for the state 0
    assert split_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        (
            "data.jsonl",
            b'{"instruction": "a", "input": "", "outptu": "b"}\n',
            r"no column 'output'.*'outptu'(.|\n)*map it to 'outptu'",
        ),
        ("data.csv", b"instruction,output\na,b\n", r"no column 'input'.*'instruction', 'output'"),
        ("data.jsonl", b'{"instruction": "a", "input": "", "output": ["b"]}\n', r"line 1: 'output' is a list"),
        ("data.jsonl", b'{"instruction": "a", "input": "", "output": true}\n', r"line 1: 'output' is a bool"),
        ("data.jsonl", b'{"instruction": "a", "input": "", "output": "b"}\n{"instruction": \n', r"line 2: broken JSON"),
        ("data.jsonl", b'{"instruction": "a", "input": "", "output": "b"}\n[1]\n', r"line 2: a list, not an object"),
        ("data.jsonl", b'{"instruction": "a", "input": "", "output": "\xff\xfe"}\n', r"line 1: byte 0xff .*UTF-8"),
        ("data.csv", b"instruction,input,output\na,b,\xe9\n", r"line 2: byte 0xe9"),
        ("data.csv", b'instruction,input,output\na,b,"c\n', r"broken CSV"),
        ("data.json", b'{"instruction": "a"}', r"no column 'input'"),
        ("data.json", b'["a"]', r"row 1: a str, not an object"),
        ("data.json", b'[{"instruction": "a", ', r"broken JSON"),
        ("data.jsonl", b"", r"the file is empty"),
        ("data.csv", b"", r"the file is empty"),
        ("data.json", b"[]", r"no usable row in language 'en'"),
        ("data.jsonl", b'{"instruction": "", "input": "", "output": "b"}\n', r"no usable row .*1 without an instruction"),
        ("data.parquet", b"PAR1....", r"not a readable Parquet"),
        ("data.parquet", b"", r"not a readable Parquet"),
        ("data.pkl", b"\x80\x04K\x01.", r"'\.pkl' are not read(.|\n)*\.parquet"),
        ("data.py", b"", r"'\.py' are not read"),
        ("data", b"", r"no ending"),
    ],
)
def test_hostile_files_are_named_and_leave_no_rows(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    (tmp_path / name).write_bytes(content)
    spec = DatasetSpec(files=str(tmp_path / name), columns=ALPACA, languages=("en",))
    with pytest.raises(UserError, match=wanted) as caught:
        run(Alone(tmp_path / "run", Stage(spec)))
    assert name in str(caught.value)


def test_parquet_of_wrong_types_and_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"instruction": ["a"], "input": [""], "output": [["b"]]}), path)
    with pytest.raises(UserError, match="'output' is list"):
        stage(tmp_path, files=str(path))
    pq.write_table(pa.table({"instruction": ["a"] * 9999, "input": [""] * 9999, "output": [str(n) for n in range(9999)]}), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="not a readable Parquet"):
        stage(tmp_path, files=str(path))


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "alpaca.jsonl", ROWS)
    with pytest.raises(UserError, match=r"no such file(.|\n)*'alpaca.jsonl'"):
        stage(tmp_path, files=str(tmp_path / "alpacca.jsonl"))
    with pytest.raises(UserError, match="folder"):
        (tmp_path / "folder.jsonl").mkdir()
        stage(tmp_path, files=str(tmp_path / "folder.jsonl"))
    with pytest.raises(UserError, match="no file has such a name"):
        stage(tmp_path, files=str(tmp_path / "*.parquet"))


def test_files_changed_since_the_plan_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    files = write(tmp_path / "data.jsonl", ROWS)
    digest = Digests().files(files, ["en"], where="grid")
    assert stage(tmp_path, files=files, digest=digest)[0]["rows"] == 3
    write(tmp_path / "data.jsonl", ROWS[:2])
    with pytest.raises(UserError, match="changed since the grid was planned"):
        stage(tmp_path, files=files, digest=digest)


def test_ids_that_occur_twice_are_refused(tmp_path: Path) -> None:
    files = write(tmp_path / "data.jsonl", [{"id": "x", **ROWS[0]}] * 2)
    with pytest.raises(UserError, match="'x' occurs more than once"):
        stage(tmp_path, files=files, columns={"id": "id", **ALPACA})


def test_several_languages_in_one_file_need_a_column_that_tells_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which of the languages"):
        stage(tmp_path, files=write(tmp_path / "data.jsonl", ROWS), languages=("de", "en"))


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for number in range(count):
                file.write(json.dumps({"instruction": f"question {number}", "input": "", "output": "word " * 100}) + "\n")
        arrow, blocks = pa.default_memory_pool(), 0
        tracemalloc.start()

        spec = DatasetSpec(files=str(path), columns=ALPACA, languages=("en",))
        context = Alone(tmp_path / f"memory{count}", Stage(spec))

        def watch(**values: Any) -> None:
            nonlocal blocks
            blocks = max(blocks, arrow.bytes_allocated())

        context.progress = watch
        run(context)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python + blocks

    small, large = peak(20_000), peak(120_000)
    assert large < small + 16 * 2**20  # the text itself grows by 52 MB


def test_a_hub_data_set_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "repo").mkdir()
    write(tmp_path / "repo" / "train.jsonl", ROWS)
    outputs, rows = stage(tmp_path, hub=str(tmp_path / "repo"))
    assert outputs["rows"] == 3
    assert rows.column("input").to_pylist() == ["1 2", "", ""]
    with pytest.raises(UserError, match=r"no column 'outputs'(.|\n)*map it to 'output'"):
        stage(tmp_path, hub=str(tmp_path / "repo"), columns={"instruction": "instruction", "output": "outputs"})


def test_a_hub_data_set_that_cannot_be_had_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to ask the hub"):
        stage(tmp_path, hub="nobody/has-this-one", revision="0" * 40)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to ask the hub"):
        stage(tmp_path, hub="nobody/has-this-one", hub_files="{language}.jsonl")


def test_a_repository_with_a_script_is_refused_unread(tmp_path: Path) -> None:
    repo = tmp_path / "scripted"
    repo.mkdir()
    (repo / "scripted.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match="cannot be had"):
        stage(tmp_path, hub=str(repo))


def test_toy_rows_are_counted(tmp_path: Path) -> None:
    outputs, rows = stage(tmp_path, toy="multialpaca", columns={}, languages=("de", "es", "sw"), rows=40)
    assert outputs["rows"] == rows.num_rows == 120
    with pytest.raises(UserError, match="no language 'fr'"):
        stage(tmp_path, toy="multialpaca", columns={}, languages=("fr",), rows=4)


@pytest.mark.skipif(not (PUBLIC / "alpaca").is_dir(), reason="the public data sets are not at hand")
def test_the_real_alpaca(tmp_path: Path) -> None:
    outputs, rows = stage(tmp_path, files=str(PUBLIC / "alpaca" / "train.parquet"))
    assert outputs["account"]["came"] == 52_002 == outputs["rows"] + sum(outputs["account"]["left_out"].values())
    assert set(outputs["account"]["left_out"]) <= {"no_output"}
    assert sum(1 for text in rows.column("input").to_pylist() if text) > 20_000


@pytest.mark.skipif(not (PUBLIC / "multialpaca").is_dir(), reason="the public data sets are not at hand")
def test_the_real_multialpaca_with_its_nulls(tmp_path: Path) -> None:
    source = {language: pq.read_table(PUBLIC / "multialpaca" / f"{language}.parquet") for language in ("es", "ja", "pt")}
    assert any(table.column("input").null_count for table in source.values())
    outputs, rows = stage(tmp_path, files=str(PUBLIC / "multialpaca" / "{language}.parquet"), languages=("es", "ja", "pt"))
    assert outputs["account"]["came"] == 9_958 + 10_191 + 10_825
    assert list(outputs["rows_by_language"]) == ["es", "ja", "pt"]
    assert all(text is not None for name in rows.column_names for text in rows.column(name).to_pylist())


def test_prompts_without_answers_and_the_first_item_of_a_list(tmp_path: Path) -> None:
    columns = {"instruction": "turns[0]", "id": "n"}
    rows = [{"n": 7, "turns": ["Write a poem.", "Shorter."]}, {"n": 8, "turns": []}, {"n": 9, "turns": ["Count."]}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    for name in ("q.jsonl", "q.parquet"):
        outputs, found = stage(tmp_path, files=str(tmp_path / name), columns=columns, allow_left_out=0.4)
        assert found.column("instruction").to_pylist() == ["Write a poem.", "Count."]
        assert found.column("id").to_pylist() == ["7", "9"] and set(found.column("output").to_pylist()) == {""}
        assert outputs["account"]["left_out"] == {"no_instruction": 1}
        with pytest.raises(UserError, match="turn"):
            stage(tmp_path, files=str(tmp_path / name), columns={"instruction": "turn[0]"})
        with pytest.raises(UserError) as raised:
            stage(tmp_path, files=str(tmp_path / name), columns={"instruction": "turns"})
        assert "turns" in raised.value.what and "not text" in raised.value.what


def test_a_column_called_with_brackets_is_that_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"q[0]": ["a"], "q": [["b"]]}), tmp_path / "q.parquet")
    _, found = stage(tmp_path, files=str(tmp_path / "q.parquet"), columns={"instruction": "q[0]"})
    assert found.column("instruction").to_pylist() == ["a"]


def test_a_column_for_each_language(tmp_path: Path) -> None:
    columns = {"id": [1, 2], "sentence_eng_Latn": ["one", "two"], "sentence_deu_Latn": ["eins", "zwei"], "text_de": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    given: dict[str, Any] = {"files": str(tmp_path / "all.parquet"), "languages": ("en", "de")}
    _, found = stage(tmp_path, columns={"instruction": "sentence_{flores}", "id": "id"}, **given)
    assert found.column("instruction").to_pylist() == ["one", "two", "eins", "zwei"]
    assert found.column("id").to_pylist() == ["1:en", "2:en", "1:de", "2:de"]
    with pytest.raises(UserError, match="text_en"):
        stage(tmp_path, columns={"instruction": "text_{language}"}, **given)
    with pytest.raises(UserError, match="xx"):
        stage(tmp_path, columns={"instruction": "sentence_{flores}"}, **given | {"languages": ("xx",)})


def test_mt_bench_and_flores_as_they_are(tmp_path: Path, shared_data: Path) -> None:
    questions = str(shared_data / "mt_bench/question.parquet")
    _, prompts = stage(tmp_path, files=questions, columns={"instruction": "turns[0]", "id": "question_id"})
    assert prompts.num_rows == 80 and prompts.column("id")[0].as_py() == "81"
    assert prompts.column("instruction")[0].as_py() == pq.read_table(questions).column("turns")[0].as_py()[0]
    _, sentences = stage(
        tmp_path,
        files=str(shared_data / "flores200/devtest_all.parquet"),
        columns={"instruction": "sentence_{flores}", "id": "id"},
        languages=("en", "de", "ja"),
    )
    assert sentences.num_rows == 3 * 1012
