"""From files to canonical rows: which rows, under which names, of which language, and what was left out and why."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cft_ray.data.accounts import Tally
from cft_ray.data.formats import FORMATS
from cft_ray.data.readers import BATCH, Wanted, column_names, item, read_file, require_columns
from cft_ray.data.rows import COLUMNS, load_turns
from cft_ray.data.sources import _elsewhere, read
from cft_ray.data.toy import TOY, held_out
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec

ASKED: dict[str, Any] = {"instruction": "q", "output": "a"}


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec(files: Path | str, languages: tuple[str, ...] = ("en",), **columns: str) -> DatasetSpec:
    return DatasetSpec(files=str(files), columns=columns or ASKED, languages=languages)


def rows(given: DatasetSpec) -> tuple[list[dict[str, str]], Tally]:
    tally = Tally()
    return [row for table in read(given, tally) for row in table.to_pylist()], tally


def test_a_row_has_all_columns_and_a_name_of_its_own(tmp_path):
    (one, two), tally = rows(spec(lines(tmp_path / "a.jsonl", {"q": "x", "a": "1"}, {"q": "y", "a": "2"})))
    assert list(one) == list(COLUMNS) and one["language"] == "en" and one["input"] == one["system"] == ""
    assert (one["instruction"], one["output"], two["instruction"]) == ("x", "1", "y")
    assert (one["id"], two["id"]) == ("en-0000000", "en-0000001")
    assert tally.came == 2 and not tally.left_out and not tally.set_aside


def test_names_of_the_source_are_kept_and_told_apart_by_language(tmp_path):
    for language in ("de", "sw"):
        lines(tmp_path / f"{language}.jsonl", {"n": 7, "q": "x", "a": "1"}, {"n": None, "q": "y", "a": "2"})
    pattern = f"{tmp_path}/{{language}}.jsonl"
    columns = {**ASKED, "id": "n"}
    found, _ = rows(spec(pattern, ("de", "sw"), **columns))
    assert [row["id"] for row in found] == ["7:de", "de-0000001:de", "7:sw", "sw-0000001:sw"]
    assert [row["language"] for row in found] == ["de", "de", "sw", "sw"]
    alone, _ = rows(spec(pattern, ("de",), **columns))
    assert [row["id"] for row in alone] == ["7", "de-0000001"]


def test_rows_without_an_answer_or_a_question_are_left_out_and_counted(tmp_path):
    file = lines(
        tmp_path / "a.jsonl",
        {"q": "x", "a": "1"},
        {"q": " ", "a": "2"},
        {"q": "x", "a": "\n"},
        {"q": None, "a": "3", "i": "only an input"},
        {"q": None, "a": None},
    )
    found, tally = rows(spec(file, **ASKED, input="i"))
    assert [row["output"] for row in found] == ["1", "3"]
    assert dict(tally.left_out) == {"no_instruction": 2, "no_output": 1} and tally.came == 5
    prompts, tally = rows(spec(file, instruction="q"))
    assert [row["instruction"] for row in prompts] == ["x", "x"] and dict(tally.left_out) == {"no_instruction": 3}
    answers, tally = rows(spec(file, output="a"))
    assert [row["output"] for row in answers] == ["1", "2", "3"] and dict(tally.left_out) == {"no_output": 2}


def test_languages_of_a_column(tmp_path):
    said = ["de", "DE", "German", "fr", "fra_Latn", "klingonisch", "xx", "", " ", "de"]
    file = lines(tmp_path / "a.jsonl", *({"q": str(n), "a": "1", "l": language} for n, language in enumerate(said)))
    found, tally = rows(spec(file, ("de", "sw"), **ASKED, language="l"))
    assert [(row["instruction"], row["language"]) for row in found] == [("0", "de"), ("9", "de")]
    # Another language that is asked for nowhere is nothing lost; one in other words is.
    assert dict(tally.set_aside) == {"other_language": 3}
    assert dict(tally.left_out) == {"language_spelled_otherwise": 2, "unknown_language": 1, "no_language": 2}
    assert tally.found["language_spelled_otherwise"] == {"DE": 1, "German": 1} and set(tally.found) == {
        "language_spelled_otherwise",
        "unknown_language",
        "no_language",
    }
    with pytest.raises(UserError, match="nothing says which rows are of which"):
        rows(spec(file, ("de", "sw")))


def test_patterns_name_their_files_in_order(tmp_path):
    for name in ("b", "a", "c"):
        lines(tmp_path / f"part-{name}.jsonl", {"q": name, "a": "1"})
    lines(tmp_path / "other.jsonl", {"q": "other", "a": "1"})
    found, _ = rows(spec(tmp_path / "part-*.jsonl"))
    assert [row["instruction"] for row in found] == ["a", "b", "c"]
    assert [row["id"] for row in found] == ["en-0000000", "en-0000001", "en-0000002"]
    with pytest.raises(UserError, match="no file has such a name"):
        rows(spec(tmp_path / "nothing-*.jsonl"))
    with pytest.raises(UserError, match="has no source"):
        rows(DatasetSpec(columns=ASKED, languages=("en",)))


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    lines(tmp_path / "questions.jsonl", {"q": "x", "a": "1"})
    for name, what, fix in (
        ("question.jsonl", "there is no such file", "'questions.jsonl'"),
        ("zzzz.jsonl", "there is no such file", "name an existing data file"),
        ("absent/questions.jsonl", "there is no such file", "name an existing data file"),
    ):
        with pytest.raises(UserError, match=what) as raised:
            rows(spec(tmp_path / name))
        assert fix in str(raised.value.fix)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="this is a folder"):
        rows(spec(tmp_path / "folder.jsonl"))


@pytest.mark.parametrize(
    ("name", "found", "named"),
    [
        ("turns[0]", ["turns"], ("turns", 0)),
        ("turns[12]", [], ("turns", 12)),
        ("turns[0]", ["turns[0]"], ("turns[0]", None)),
        ("turns[x]", [], ("turns[x]", None)),
        ("turns[-1]", [], ("turns[-1]", None)),
        ("turns", [], ("turns", None)),
        ("3", [], ("3", None)),
        ("a[3", [], ("a[3", None)),
        ("]", [], ("]", None)),
        ("[7]", [], ("", 7)),
    ],
)
def test_an_item_of_a_list_is_named_by_its_number(name, found, named):
    assert item(name, found) == named


def test_items_of_lists_are_read_and_short_lists_have_none(tmp_path):
    pq.write_table(pa.table({"turns": [["a", "b"], ["c"], None, []], "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    wanted = Wanted(("turns[0]", "turns[1]", "n"))
    (table,) = read_file(str(tmp_path / "a.parquet"), wanted)
    assert table["turns[0]"].to_pylist() == ["a", "c", None, None] and table["turns[1]"].to_pylist() == ["b", None, None, None]
    assert table["n"].to_pylist() == ["1", "2", "3", "4"] and column_names(str(tmp_path / "a.parquet")) == ["turns", "n"]
    with pytest.raises(UserError, match="not text") as raised:
        list(read_file(str(tmp_path / "a.parquet"), Wanted(("turns",))))
    assert "'turns[0]'" in str(raised.value.fix)
    pq.write_table(pa.table({"s": [{"x": "1"}], "f": [0.5]}), tmp_path / "b.parquet")
    for name, fix in (("s", "format: messages"), ("f", "a column of text")):
        with pytest.raises(UserError, match="not text") as raised:
            list(read_file(str(tmp_path / "b.parquet"), Wanted((name,))))
        assert fix in str(raised.value.fix)


def test_the_nearest_free_column_is_advised():
    for found, wanted, fix in (
        (["Question", "answer"], ["question", "answer"], "map it to 'Question'"),
        (["answers", "answer"], ["answer", "anwsers"], "map it to 'answers'"),
        (["answer"], ["answer", "answers"], "map what the file has"),
    ):
        with pytest.raises(UserError) as raised:
            require_columns(found, wanted, "x")
        assert fix in str(raised.value.fix)
    require_columns(["a", "b"], ["a", "b[0]"], "x")


# How large the toy world's data sets are: the demonstration's numbers and the plan's estimates stand on it.
SIZES = {
    "mixture": 5000, "alpaca": 9000, "instruct": 18000, "openorca": 9000, "multialpaca": 3000, "mopenorca": 3000, "prompts": 80,
    "parallel": 50, "eval_letters": 300, "eval_numbers": 300, "eval_languages": 100, "eval_languages_numbers": 100,
}  # fmt: skip


def test_toy_data_sets_have_their_size():
    assert {name: toy.rows for name, toy in TOY.items()} == SIZES
    for name in ("prompts", "eval_numbers", "parallel"):
        tally = Tally()
        given = DatasetSpec(toy=name, columns={}, languages=TOY[name].languages)
        assert sum(table.num_rows for table in read(given, tally)) == SIZES[name] * len(TOY[name].languages) == tally.came
    few = DatasetSpec(toy="alpaca", columns={}, languages=("en",), rows=7)
    assert [table.num_rows for table in read(few, Tally())] == [7]


def test_a_tenth_of_the_items_is_held_out_whatever_the_order_of_their_parts():
    """The items themselves, since what is trained must stay what is not asked."""

    def tenth(*parts: str) -> bool:
        return int(hashlib.sha256(f"item:{' '.join(sorted(parts))}".encode()).hexdigest()[:2], 16) < 26

    pairs = [(one, other) for one in range(60) for other in range(60)]
    held = {pair for pair in pairs if held_out(f"{pair[0]} {pair[1]}")}
    assert held == {pair for pair in pairs if tenth(*map(str, pair))} and 0.08 < len(held) / len(pairs) < 0.13
    assert [held_out(str(n)) for n in range(300)] == [tenth(str(n)) for n in range(300)]
    words = ["".join(letters) for letters in itertools.permutations("abcd", 3)]
    assert [held_out(word) for word in words] == [tenth(*word) for word in words]


ALPACA = {"instruction": "x", "input": "", "output": "1"}
SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def recognised(files: Path | str, languages: tuple[str, ...] = ("en",)) -> DatasetSpec:
    return DatasetSpec(files=str(files), columns={}, format="auto", languages=languages)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (ALPACA, {"instruction": "x", "output": "1"}),
        ({"instruction": "x", "output": "1"}, {"instruction": "x", "input": "", "output": "1"}),
        ({"id": 7, "system_prompt": "s", "question": "x", "response": "1"}, {"id": "7", "system": "s", "output": "1"}),
        (dict.fromkeys(COLUMNS[:6], "z") | {"language": "en"}, {"id": "z", "system": "z", "input": "z", "output": "z"}),
        ({"messages": SAID}, {"instruction": "q", "output": "a", "system": "", "turns": ""}),
        ({"conversations": SAID, "system": "s"}, {"instruction": "q", "output": "a", "system": "s", "turns": ""}),
    ],
)
def test_the_columns_say_what_a_file_holds(tmp_path, given, wanted):
    (row,), tally = rows(recognised(lines(tmp_path / "a.jsonl", given)))
    assert {name: row[name] for name in wanted} == wanted and tally.came == 1


def test_columns_of_no_known_format_are_refused(tmp_path):
    with pytest.raises(UserError, match="no known format; columns found: 'q', 'a'"):
        rows(recognised(lines(tmp_path / "a.jsonl", {"q": "x", "a": "1"})))
    with pytest.raises(UserError, match="columns found: none"):
        rows(recognised(lines(tmp_path / "b.jsonl", {})))


def test_the_first_file_of_the_first_language_says_it_for_all(tmp_path):
    for language in ("de", "fr"):
        for part in ("a", "b"):
            lines(tmp_path / f"{language}-{part}.jsonl", ALPACA | {"output": f"{language}{part}"})
    found, _ = rows(recognised(f"{tmp_path}/{{language}}-*.jsonl", ("de", "fr")))
    assert [(row["language"], row["output"]) for row in found] == [(x, f"{x}{part}") for x in ("de", "fr") for part in "ab"]


def test_conversations_are_rows_or_left_out_with_a_reason(tmp_path):
    more = [*SAID, {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]
    given = [
        {"c": SAID, "s": "column"},
        {"c": [{"role": "system", "content": "turn"}, *more], "s": "column"},
        {"c": more, "s": None},
        {"c": SAID[:1], "s": "x"},
        {"c": [], "s": "x"},
        {"c": None, "s": "x"},
    ]
    file = lines(tmp_path / "a.jsonl", *given)
    found, tally = rows(spec(file, conversation="c", system="s"))
    assert [(row["system"], row["instruction"], row["output"]) for row in found] == [
        ("column", "q", "a"),
        ("turn", "q2", "a2"),
        ("", "q2", "a2"),
    ]
    assert [load_turns(row["turns"]) for row in found] == [[], SAID, SAID]
    assert [row["id"] for row in found] == ["en-0000000", "en-0000001", "en-0000002"] and {row["input"] for row in found} == {""}
    assert dict(tally.left_out) == {"ends_with_a_question": 1, "no_turns": 2} and tally.came == 6
    without, _ = rows(spec(file, conversation="c"))
    assert [row["system"] for row in without] == ["", "turn", ""]


def test_rows_are_numbered_through_all_files_of_a_language(tmp_path):
    """Also over the tables of one file, and whether rows before are left out or not."""
    lines(tmp_path / "a.jsonl", *({"q": str(n), "a": "1" if n != 5 else ""} for n in range(BATCH + 3)))
    lines(tmp_path / "b.jsonl", {"q": "last", "a": "1"})
    found, tally = rows(spec(tmp_path / "*.jsonl"))
    assert [row["id"] for row in found if row["instruction"] in ("0", "6", str(BATCH), "last")] == [
        f"en-{number:07d}" for number in (0, 6, BATCH, BATCH + 3)
    ]
    assert len(found) == BATCH + 3 and tally.came == BATCH + 4


class Hub:
    """The hub client's answers, for a repository whose files lie in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.asked = folder, []
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", self.listed)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.downloaded)
        monkeypatch.setattr(datasets, "load_dataset", self.loaded)

    def listed(self, repository: str, *, repo_type: str, revision: str | None) -> list[str]:
        assert (repository, repo_type, revision) == ("org/rows", "dataset", "abc")
        return sorted((path.name for path in self.folder.iterdir()), reverse=True)

    def downloaded(self, repository: str, name: str, *, repo_type: str, revision: str | None) -> str:
        assert (repository, repo_type, revision) == ("org/rows", "dataset", "abc")
        self.asked.append(name)
        return str(self.folder / name)

    def loaded(self, repository: str, *, name: str | None, split: str, revision: str | None) -> object:
        assert (repository, revision) == ("org/rows", "abc")
        if split == "both":
            return datasets.DatasetDict()
        if split == "broken":
            raise ValueError("\nno such split\nmore")
        text = [f"{name} {n}" for n in range(BATCH + 2)]
        return datasets.Dataset.from_dict({"instruction": text, "input": [""] * len(text), "output": text, "n": text})


def hubbed(**more: Any) -> DatasetSpec:
    return DatasetSpec(**({"hub": "org/rows", "revision": "abc", "columns": ASKED, "languages": ("en",)} | more))


def test_files_of_a_repository_are_those_that_the_pattern_names(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        lines(tmp_path / name, {"q": name, "a": "1"})
    hub = Hub(tmp_path, monkeypatch)
    found, _ = rows(hubbed(hub_files="*.jsonl"))
    assert [row["instruction"] for row in found] == hub.asked == ["a.jsonl", "b.jsonl"]
    found, _ = rows(hubbed(hub_files="b.jsonl"))
    assert [row["instruction"] for row in found] == ["b.jsonl"]
    with pytest.raises(UserError, match="no file in the hub repository") as raised:
        rows(hubbed(hub_files="*.csv"))
    assert raised.value.where == "org/rows/*.csv"
    lines(tmp_path / "d.jsonl", ALPACA)
    (row,), _ = rows(hubbed(hub_files="d.jsonl", columns={}, format="auto"))
    assert row["instruction"] == "x"


def test_a_split_of_a_repository_is_read_as_a_table(tmp_path, monkeypatch):
    Hub(tmp_path, monkeypatch)
    for given in (hubbed(config="two", columns=FORMATS["alpaca"]), hubbed(config="two", columns={}, format="auto")):
        found, tally = rows(given)
        assert tally.came == BATCH + 2 and [found[n]["output"] for n in (0, BATCH + 1)] == ["two 0", f"two {BATCH + 1}"]
    languages = hubbed(config="{language}", columns=FORMATS["alpaca"], languages=("de", "fr"))
    assert {row["output"] for row in rows(languages)[0]} >= {"de 0", "fr 0"}
    for split, what in (("both", "no single table"), ("broken", r"ValueError: no such split\)")):
        with pytest.raises(UserError, match=what):
            rows(hubbed(split=split))
    with pytest.raises(UserError, match="no column 'q'"):
        rows(hubbed())


@pytest.mark.parametrize(
    ("said", "asked", "reason"),
    [
        ("de", ("de",), None), ("", ("de",), "no_language"), (" \t", ("de",), "no_language"),
        ("deu", ("de",), "language_spelled_otherwise"), ("fr", ("de",), "other_language"), ("French", ("de",), "other_language"),
        ("xx", ("de",), "other_language"), ("xx-YY", ("de",), "other_language"), ("abc_Latn_x", ("de",), "other_language"),
        ("x", ("de",), "unknown_language"), ("abcd", ("de",), "unknown_language"), ("Klingon", ("de",), "unknown_language"),
        ("xx-1", ("de",), "unknown_language"),
    ],
)  # fmt: skip
def test_why_a_row_is_of_another_language(said, asked, reason):
    assert _elsewhere(said, asked) == reason
