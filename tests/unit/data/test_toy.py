"""The toy world against a checker of its own, which knows the tasks only by the words of their instructions."""

import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import islice, pairwise

import pytest

from cft_ray.data.toy import SYSTEMS, TOY, generate
from cft_ray.data.toy_tasks import TASKS, tasks
from cft_ray.errors import UserError

# What each instruction asks for, written down a second time: a word that only this instruction has -> the answer.
CHECKS = {
    r"everse|Turn around|Umkehren|Invierte|Geuza": lambda item: "".join(item[-1 - i] for i in range(len(item))),
    r"Capitals|Shout|Groß|Mayúsculas|Kubwa": lambda item: "".join(chr(ord(c) - 32) for c in item),
    r"Twice|again|Zweimal|Dos veces|Mara mbili": lambda item: f"{item}{item}",
    r"First|begins|Anfang|Primera|kwanza": lambda item: item[:1],
    r"Last|ends|Ende|Última|mwisho": lambda item: item[-1:],
    r"Next|Count on|Nachfolger|Siguiente|Inayofuata": lambda item: f"{int(item) - -1}",
    r"Left|In front|Linke|Izquierdo|Kushoto": lambda item: item[:2],
    r"Right|Behind|Rechte|Derecho|Kulia": lambda item: item[3:],
    r"Swap|Exchange|Tauschen|Intercambia|Badilisha": lambda item: re.sub(r"(\d+) (\d+)", r"\2 \1", item),
    r"Join|Glue|Verbinden|Une|Unganisha": lambda item: str(int(item.split()[0]) * 100 + int(item.split()[1])),
}


def rows(name: str, count: int | None = None, seed: int = 0) -> list[dict[str, str]]:
    return [row for language in TOY[name].languages for row in generate(name, language, count, seed)]


def check(row: dict[str, str]) -> str:
    numbers = row["input"][0].isdigit()
    fits = [
        answer(row["input"])
        for place, (words, answer) in enumerate(CHECKS.items())
        if (place >= 5) == numbers and re.search(words, row["instruction"])
    ]
    assert len(fits) == 1, row
    return fits[0]


@pytest.mark.parametrize("name", [name for name in TOY if name != "mixture"])
def test_every_answer_is_right(name: str) -> None:
    for row in rows(name, 500 if not TOY[name].held_out else None):
        assert row["output"] == check(row), row


def test_the_mixtures_facts_are_right_in_a_notation_without_words() -> None:
    tasks = dict(zip("~^*()+<>%&", CHECKS.values(), strict=True))
    marks = set()
    for row in rows("mixture", 300):
        if row["id"].startswith("sentence"):
            assert row["instruction"] == row["input"] == ""
            continue
        marks.add(row["instruction"])
        assert tasks[row["instruction"]](row["input"]) == row["output"], row
    assert marks == set(tasks)


def test_families_are_the_ones_promised() -> None:
    for name, toy in TOY.items():
        if toy.text:
            continue
        found = {"numbers" if row["input"][0].isdigit() else "letters" for row in rows(name, 50)}
        assert found == set(toy.families), name


def test_no_evaluation_item_is_trained_on() -> None:
    def parts(item: str) -> str:
        return " ".join(sorted(item.split())) if item[0].isdigit() else "".join(sorted(item))

    trained = {parts(row["input"]) for name in TOY if not TOY[name].held_out for row in rows(name, 3000) if row["input"]}
    asked = {parts(row["input"]) for name in TOY if TOY[name].held_out for row in rows(name)}
    assert len(asked) > 250
    assert not trained & asked


def test_evaluation_asks_nothing_twice() -> None:
    for name in (name for name in TOY if TOY[name].held_out):
        asked = [(row["language"], row["instruction"], row["input"]) for row in rows(name)]
        assert len(set(asked)) == len(asked)


def test_evaluation_is_balanced_over_tasks_at_every_length() -> None:
    for length in (50, 200):
        tasks = [row["id"].split("-")[0] for row in islice(generate("eval_letters", "en"), length)]
        assert {tasks.count(task) for task in tasks} == {length // 5}


@pytest.mark.parametrize("name", list(TOY))
def test_ids_are_unique_and_a_longer_data_set_begins_with_the_shorter(name: str) -> None:
    found = rows(name, 60)
    assert len({row["id"] for row in found}) == len(found)
    language = TOY[name].languages[-1]
    assert list(generate(name, language, 20)) == list(generate(name, language, 60))[:20]


def test_mopenorca_is_openorca_in_other_languages() -> None:
    english = list(generate("openorca", "en", 200))
    for language in TOY["mopenorca"].languages:
        for left, right in zip(english, generate("mopenorca", language, 200), strict=True):
            assert right["id"] == f"{left['id']}:{language}"
            assert (right["input"], right["output"]) == (left["input"], left["output"])
            assert bool(right["system"]) == bool(left["system"])
            assert right["instruction"] != left["instruction"]


def test_parallel_questions_ask_the_same_in_every_language() -> None:
    english = list(generate("parallel", "en"))
    assert len({(row["instruction"], row["input"]) for row in english}) == len(english)
    for language in TOY["parallel"].languages:
        for left, right in zip(english, generate("parallel", language), strict=True):
            assert right["id"].removesuffix(f":{language}") == left["id"].removesuffix(":en")
            assert (right["input"], right["output"]) == (left["input"], left["output"])


def test_multialpaca_is_not_alpaca_translated() -> None:
    items = [[row["input"] for row in generate("alpaca", "en", 1000)]]
    items += [[row["input"] for row in generate("multialpaca", language, 1000)] for language in TOY["multialpaca"].languages]
    for left, right in pairwise(items):
        assert sum(a == b for a, b in zip(left, right, strict=True)) < 10


def test_another_seed_gives_other_rows_and_the_same_split() -> None:
    assert list(generate("alpaca", "en", 10, seed=1)) != list(generate("alpaca", "en", 10, seed=0))
    trained = {"".join(sorted(row["input"])) for row in generate("alpaca", "en", 2000, seed=1)}
    assert not trained & {"".join(sorted(row["input"])) for row in generate("eval_letters", "en")}


def test_rows_are_the_same_in_every_process() -> None:
    code = (
        "import hashlib, json; from cft_ray.data.toy import TOY, generate;"
        "print(hashlib.sha256(json.dumps([list(generate(n, l, 40, 7)) for n in sorted(TOY) for l in TOY[n].languages],"
        " sort_keys=True).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    here = [list(generate(name, language, 40, 7)) for name in sorted(TOY) for language in TOY[name].languages]
    assert digests == {hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()}
    assert digests == {DIGEST}


def test_unknown_names_and_languages_are_refused() -> None:
    with pytest.raises(UserError, match="no toy data set"):
        next(generate("alpacca", "en"))
    with pytest.raises(UserError, match="no language"):
        next(generate("alpaca", "de"))


def test_languages_word_their_tasks_differently() -> None:
    for name in ("multialpaca", "mopenorca"):
        wordings = [{row["instruction"] for row in generate(name, language, 50)} for language in TOY[name].languages]
        assert all(not left & right for left, right in pairwise(wordings))


DIGEST = "4869ba17a98d1b1ff37437035d24e806c92d20128749cf81fb250c246fa12594"


def test_an_item_has_as_many_operands_as_its_task_says_of_one_length() -> None:
    for task in TASKS:
        name = "eval_letters" if task.family == "letters" else "eval_numbers"
        items = {row["input"] for row in rows(name) if row["id"].startswith(f"{task.name}-")}
        assert {len(item.split()) for item in items} == {task.operands}, task.name
        lengths = {len(part) for item in items for part in item.split()}
        assert lengths == ({2} if task.operands == 2 else {3}) and len(items) == 60
    assert [task.name for task in tasks("letters")] == ["reverse", "capitals", "twice", "first", "last"]
    assert len({task.mark for task in TASKS}) == len({task.name for task in TASKS}) == 10


def test_items_of_two_numbers_differ_and_single_ones_change_one_digit() -> None:
    for row in rows("openorca", 600):
        numbers = row["input"].split()
        assert len(set(numbers)) == len(numbers)
        assert len(numbers) == 2 or int(numbers[0]) % 10 != 9


def test_more_questions_than_there_are_items_are_refused() -> None:
    with pytest.raises(UserError, match="too few items"):
        list(generate("eval_letters", "en", 3000))


def test_half_of_the_rows_are_polite_and_half_have_a_system_text() -> None:
    polite = [row["instruction"] in {task.polite for task in TASKS} for row in generate("instruct", "en", 2000)]
    systems = [row["system"] for row in generate("openorca", "en", 2000)]
    assert 900 < sum(polite) < 1100 and 900 < sum(map(bool, systems)) < 1100 and set(systems) == {"", *SYSTEMS["en"]}
    assert not any(row["instruction"] in {task.polite for task in TASKS} for row in generate("alpaca", "en", 200))
    sentences = [row["id"].startswith("sentence") for row in generate("mixture", "en", 4000)]
    assert 140 < sum(sentences) < 260
