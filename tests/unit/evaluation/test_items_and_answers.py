"""Items of files as the harness gets them, and answers that are kept in parts; no harness is started."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lm_eval.api.instance import Instance

from cft_ray.errors import UserError
from cft_ray.evaluation import answers
from cft_ray.evaluation.answers import Answers, Kept, name_of
from cft_ray.evaluation.items import SHAPES, check_columns, load, local_files
from cft_ray.plan.digest import Digests
from cft_ray.plan.items import items_digest
from cft_ray.plan.specs import ItemsSource


def parquet(path: Path, **columns: list[Any]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_splits_are_read_joined_and_those_without_files_are_empty(tmp_path):
    one, two = parquet(tmp_path / "1.parquet", a=[1, 2]), parquet(tmp_path / "2.parquet", a=[3], b=["x"])
    found = load({"test": [one, two]}, ["train", "test", "validation"])
    assert {name: split.num_rows for name, split in found.items()} == {"train": 0, "test": 3, "validation": 0}
    assert found["test"]["a"] == [1, 2, 3] and found["test"]["b"] == [None, None, "x"] and "a" in found["train"].column_names
    both = load({"test": [one], "dev": [two]}, ["test"], anything="is passed over")
    assert (both["test"].num_rows, both["dev"].num_rows) == (2, 1)


def test_the_rows_of_one_task_of_a_file_of_many(tmp_path):
    file = parquet(tmp_path / "all.parquet", subject=["a", "b", "a"], n=[1, 2, 3])
    assert load({"test": [file]}, ["test"], {"subject": "a"})["test"]["n"] == [1, 3]
    assert load({"test": [file]}, ["test"], {"subject": "a", "n": 3})["test"]["n"] == [3]  # type: ignore[dict-item]
    with pytest.raises(UserError, match="there is no item with subject 'c'") as raised:
        load({"test": [file]}, ["test"], {"subject": "c"})
    assert raised.value.where == file
    with pytest.raises(UserError, match=r"there is no item\n"):
        load({"test": [parquet(tmp_path / "empty.parquet", a=pa.array([], pa.int64()))]}, ["test"])  # type: ignore[arg-type]


def test_lines_are_read_and_what_cannot_be_is_named(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"a": 1}\n{"a": 2, "b": "x"}\n')
    assert load({"test": [str(lines)]}, ["test"])["test"].to_list() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    cases = {"b.jsonl": ('{"a": 1}\n{"a": "x"}\n', "not alike"), "c.csv": ("a\n1\n", "not read from such a file")}
    cases["d.parquet"] = ("PAR1 no", "cannot be read")
    for name, (text, said) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=said) as raised:
            load({"test": [str(tmp_path / name)]}, ["test"])
        assert name in str(raised.value.where)


def test_a_file_that_is_written_again_is_read_again(tmp_path):
    file = parquet(tmp_path / "a.parquet", a=[1])
    assert load({"test": [file]}, ["test"])["test"]["a"] == [1]
    parquet(tmp_path / "a.parquet", a=[2, 3])
    assert load({"test": [file]}, ["test"])["test"]["a"] == [2, 3]


def test_hellaswag_without_its_halves(tmp_path):
    whole = SHAPES["hellaswag"]
    halves = pa.table({"ctx_a": ["a"], "ctx_b": ["b"], "ctx": ["a b"]})
    assert whole(halves, "x").equals(halves)
    for columns in ({"ctx": ["a b"]}, {"ctx": ["a b"], "ctx_a": [None]}, {"ctx": ["a b"], "ctx_a": ["a"], "ctx_b": [None]}):
        made = whole(pa.table(columns), "x").to_pylist()
        assert made == [{"ctx": "a b", "ctx_a": "a b", "ctx_b": ""}]
    for columns in ({"other": ["a"]}, {"ctx": [None]}):
        with pytest.raises(UserError, match="neither"):
            whole(pa.table(columns), "x")
    file = parquet(tmp_path / "a.parquet", ctx=["a b"])
    assert load({"test": [file]}, ["test"], shape="hellaswag")["test"].to_list() == [{"ctx": "a b", "ctx_a": "a b", "ctx_b": ""}]


def test_columns_that_the_tasks_read_must_be_there(tmp_path):
    good, bad = parquet(tmp_path / "g.parquet", q=["x"], a=["y"]), parquet(tmp_path / "b.parquet", q=["x"])
    check_columns({"de": {"scored": [good]}, "en": {"scored": [good]}}, ["q", "a"])
    with pytest.raises(UserError, match="no column 'a'") as raised:
        check_columns({"de": {"scored": [good]}, "en": {"train": [good], "scored": [good, bad]}}, ["q", "a"])
    assert raised.value.where == bad


def test_files_are_those_that_were_planned_with(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    for language in ("de", "en"):
        for part in (1, 2):
            parquet(tmp_path / f"{language}-{part}.parquet", a=[language])
    files = {"scored": f"{tmp_path}/{{language}}-*.parquet", "shots": f"{tmp_path}/en-1.parquet"}
    digest = items_digest(Digests(), files, ("de", "en"), where="x")
    found = local_files(ItemsSource(files=files, digest=digest), ("de", "en"), where="x")
    assert found == {
        language: {"scored": [f"{tmp_path}/{language}-{part}.parquet" for part in (1, 2)], "shots": [f"{tmp_path}/en-1.parquet"]}
        for language in ("de", "en")
    }
    parquet(tmp_path / "de-2.parquet", a=["changed"])
    with pytest.raises(UserError, match="have changed since they were planned with"):
        local_files(ItemsSource(files=files, digest=digest), ("de", "en"), where="x")
    assert local_files(ItemsSource(files=files), ("de", "en"), where="x") == found


class Model:
    """Answers with the question's number, and says that it had to cut every tenth prompt."""

    def __init__(self, seconds: float = 1.0, dies_after: int = 99) -> None:
        self.asked: list[list[int]] = []
        self.seconds, self.dies_after, self.now = seconds, dies_after, 0.0

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        if len(self.asked) == self.dies_after:
            raise KeyboardInterrupt
        numbers = [int(request.args[0]) for request in requests]
        self.asked.append(numbers)
        self.now += self.seconds * len(requests)
        return [f"answer {number}" for number in numbers]

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        return [(-0.5, True) for _ in self.generate_until(requests)]

    def take_changes(self) -> dict[str, int]:
        count = sum(number % 10 == 0 for number in self.asked[-1])
        return {"prompt_cut": count} if count else {}


def questions(count: int) -> list[Instance]:
    return [Instance("generate_until", {}, (str(number), {"until": []}), number) for number in range(count)]


def kept(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Kept:
    monkeypatch.setattr(answers.time, "monotonic", lambda: model.now)
    return Kept(model, Answers(str(folder)), **more)


def test_parts_grow_with_the_pace_and_answers_come_in_order(tmp_path, monkeypatch):
    """A second each: 2, then at most eightfold 16, then the 60 that a minute holds, then the rest."""
    model, told = Model(), list[tuple[int, int]]()
    asked = kept(model, tmp_path, monkeypatch, first=2, progress=lambda done, total: told.append((done, total)))
    assert asked.generate_until(questions(100)) == [f"answer {n}" for n in range(100)]
    assert [len(part) for part in model.asked] == [2, 16, 60, 22]
    assert told == [(0, 100), (2, 100), (18, 100), (78, 100), (100, 100)]
    assert asked.account() == {"account": {"came": 100, "used": 100, "noted": {"prompt_cut": 10}}}
    slow = Model(seconds=500.0)
    kept(slow, tmp_path / "slow", monkeypatch, first=3).generate_until(questions(6))
    assert [len(part) for part in slow.asked] == [3, 1, 1, 1]


def test_what_is_there_is_not_asked_again(tmp_path, monkeypatch):
    dying = Model(dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        kept(dying, tmp_path, monkeypatch, first=4).generate_until(questions(50))
    assert sorted(path.name for path in tmp_path.rglob("*.json") if "-changes" not in path.parent.name) == [
        "000000000.json",
        "000000004.json",
    ]
    again = Model()
    asked = kept(again, tmp_path, monkeypatch, first=50)
    assert asked.generate_until(questions(50)) == [f"answer {n}" for n in range(50)]
    assert again.asked == [list(range(4 + 32, 50))]
    assert asked.account()["account"]["noted"] == {"prompt_cut": 5}
    last = Model()
    assert kept(last, tmp_path, monkeypatch).generate_until(questions(50))[49] == "answer 49" and last.asked == []


def test_pairs_stay_pairs_and_kinds_and_requests_are_told_apart(tmp_path, monkeypatch):
    model = Model()
    asked = kept(model, tmp_path, monkeypatch)
    for _ in range(2):
        assert asked.loglikelihood(questions(3)) == [(-0.5, True)] * 3
    assert len(model.asked) == 1 and asked.account()["account"]["came"] == 6
    assert asked.seconds == 1.0  # everything else is the model's own
    names = {name_of(kind, questions(count)) for kind in ("generate_until", "loglikelihood") for count in (2, 3)}
    other = [Instance("generate_until", {}, ("0", {"until": ["x"]}), 0), Instance("generate_until", {}, ("1", {"until": []}), 1)]
    assert len(names | {name_of("generate_until", other)}) == 5
    assert name_of("generate_until", questions(2)) == name_of("generate_until", questions(2))


def test_what_was_changed_is_kept_of_a_part_of_one_as_well(tmp_path, monkeypatch):
    for _ in range(2):  # asked, and read again
        asked = kept(Model(seconds=500.0), tmp_path, monkeypatch, first=1)
        assert asked.generate_until(questions(11)) == [f"answer {n}" for n in range(11)]
        assert asked.account()["account"]["noted"] == {"prompt_cut": 2}


def test_without_changes_there_is_nothing_to_account_for(tmp_path, monkeypatch):
    model = Model()
    asked = kept(model, tmp_path, monkeypatch)
    asked.generate_until(questions(100)[1:10])
    assert asked.account() == {}


def test_a_stage_that_was_taken_over_writes_no_answers(tmp_path):
    def prove() -> None:
        raise UserError("taken over")

    with pytest.raises(UserError, match="taken over"):
        Answers(str(tmp_path), prove).write("x", {0: "a"})
    assert not list(tmp_path.rglob("*.json"))
    store = Answers(str(tmp_path))
    store.write("x", {7: [1.0, True], 3: "text"})
    assert [path.name for path in tmp_path.rglob("*.json")] == ["000000003.json"]
    assert store.read("x") == {7: (1.0, True), 3: "text"} and store.read("y") == {}
    assert json.loads(next(tmp_path.rglob("*.json")).read_text()) == {"7": [1.0, True], "3": "text"}


@pytest.mark.parametrize("pattern", ["{language}-*.jsonl", "{language}/part-*/x.jsonl"])
def test_items_of_a_bucket_are_brought_once_and_are_those_that_were_planned(tmp_path, bucket, monkeypatch, pattern):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))

    def named(language: str, part: str) -> str:
        return f"items/{pattern}".replace("{language}", language).replace("*", part)

    for language in ("de", "en"):
        for part in "ab":
            bucket.put(named(language, part), f'{{"a": "{language} {part}"}}\n'.encode())
    files = {"test": f"s3://bucket/items/{pattern}"}
    digest = items_digest(Digests(tmp_path / "d"), files, ("de", "en"), where="x")
    found = local_files(ItemsSource(files=files, digest=digest), ("de", "en"), where="x")
    for language in ("de", "en"):
        rows = load({"test": found[language]["test"]}, ["test"])["test"]["a"]
        assert rows == [f"{language} a", f"{language} b"]
        assert all(tmp_path / "cache" in Path(path).parents for path in found[language]["test"])
    assert local_files(ItemsSource(files=files, digest=digest), ("de", "en"), where="x") == found
    bucket.put(named("en", "b"), b'{"a": "other"}\n')
    with pytest.raises(UserError, match="have changed since they were planned"):
        local_files(ItemsSource(files=files, digest=digest), ("de", "en"), where="x")
