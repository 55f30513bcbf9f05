"""The stock benchmarks on real items: how many there are, and what planted answers score, worked out by hand."""

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tableanswers import TableAnswers

from cft_ray.errors import UserError
from cft_ray.evaluation.harness import ask, load_benchmark, run_benchmark
from cft_ray.evaluation.models import load_model
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.settings import GenerationSettings
from cft_ray.plan.specs import EvaluateSpec, ItemsSource

XQUAD = ["ar", "de", "en", "es", "hi", "ru", "th", "vi", "zh"]


def spec(name: str, files: str | Path, languages: list[str] | None = None, **changes: Any) -> EvaluateSpec:
    declared = BENCHMARKS[name]
    tasks = declared.tasks | declared.also
    return EvaluateSpec(
        benchmark=name,
        ability=declared.ability,
        tasks={language: tasks[language] for language in languages or declared.tasks},
        metric=declared.metric,
        generation=declared.generation,
        items=ItemsSource(files={"scored": str(files)}),
        **changes,
    )


def scores(result: Any) -> dict[tuple[str, str], float]:
    return {(row["task"], row["metric"]): row["value"] for row in result.scores}


# --- MMLU

SUBJECTS = {"anatomy": 135, "astronomy": 152, "philosophy": 311, "virology": 166}


@pytest.fixture(scope="module")
def mmlu(shared_data, tmp_path_factory) -> Path:
    """All subjects have items, four have all of theirs."""
    table = pq.read_table(shared_data / "mmlu" / "test.parquet")
    first = [index for index, subject in enumerate(table["subject"].to_pylist()) if subject in SUBJECTS]
    seen: Counter[str] = Counter()
    for index, subject in enumerate(table["subject"].to_pylist()):
        if subject not in SUBJECTS and seen[subject] < 2:
            seen[subject] += 1
            first.append(index)
    path = tmp_path_factory.mktemp("mmlu") / "test.parquet"
    pq.write_table(table.take(pa.array(first)), path)
    return path


def test_mmlu_by_subject(mmlu):
    """Right in philosophy, always A elsewhere."""
    rows = pq.read_table(mmlu).to_pylist()
    model = TableAnswers(
        prefers=lambda doc, choice: float(choice == ("ABCD"[doc["answer"]] if doc["subject"] == "philosophy" else "A"))
    )
    result = run_benchmark(model, spec("mmlu", mmlu))
    right = {
        subject: [row["subject"] == "philosophy" or row["answer"] == 0 for row in rows if row["subject"] == subject]
        for subject in {row["subject"] for row in rows}
    }
    found = scores(result)
    assert len(right) == 57 and found["mmlu_philosophy", "acc"] == 1.0
    for subject, marks in right.items():
        assert found[f"mmlu_{subject}", "acc"] == pytest.approx(sum(marks) / len(marks))
    everything = [mark for marks in right.values() for mark in marks]
    assert result.shown["en"] == pytest.approx(sum(everything) / len(everything))
    assert {"mmlu_stem", "mmlu_humanities", "mmlu_other", "mmlu_social_sciences"} <= {task for task, _ in found}
    counts = {row["task"]: row["n"] for row in result.scores}
    assert counts["mmlu"] == len(rows) == len(result.samples)
    assert {subject: counts[f"mmlu_{subject}"] for subject in SUBJECTS} == SUBJECTS
    assert sum(counts[f"mmlu_{group}"] for group in ("stem", "humanities", "other", "social_sciences")) == len(rows)
    assert len({(row["task"], row["item"]) for row in result.samples}) == len(rows)
    assert {row["cluster"] for row in result.samples} == set(right)


# --- HellaSwag


def test_hellaswag(shared_data):
    """The whole validation set, as the text extract that lacks the context's halves; a part of it is asked."""
    path = shared_data / "hellaswag" / "validation_text_full.parquet"
    labels = [int(label) for label in pq.read_table(path)["label"].to_pylist()]
    right = TableAnswers(prefers=lambda doc, choice: float(doc["choices"][doc["gold"]].strip() == choice))
    result = run_benchmark(right, spec("hellaswag", path, limit=500))
    assert scores(result)["hellaswag", "acc"] == 1.0
    assert len({row["item"] for row in result.samples}) == 500
    first = TableAnswers(prefers=lambda doc, choice: float(doc["choices"][0].strip() == choice))
    benchmark = load_benchmark(spec("hellaswag", path, limit=500))
    assert len(benchmark.loaded["tasks"]["hellaswag"].eval_docs) == len(labels) == 10_042
    assert scores(ask(first, benchmark))["hellaswag", "acc"] == pytest.approx(labels[:500].count(0) / 500)


def test_hellaswag_by_length(tmp_path):
    """acc_norm divides by the ending's characters: of -4 for 4 and -6 for 8 the second is likelier."""
    row = {
        "activity_label": "Cooking",
        "ctx_a": "One",
        "ctx_b": "two",
        "ctx": "One two",
        "label": "1",
        "ind": 7,
        "source_id": "v1",
    }
    pq.write_table(pa.Table.from_pylist([row | {"endings": ["abcd", "abcdefgh", "x", "y"]}]), tmp_path / "items.parquet")
    worth = {"abcd": -4.0, "abcdefgh": -6.0, "x": -9.0, "y": -9.0}
    result = run_benchmark(TableAnswers(prefers=lambda doc, choice: worth[choice]), spec("hellaswag", tmp_path / "items.parquet"))
    assert scores(result) == {("hellaswag", "acc"): 0.0, ("hellaswag", "acc_norm"): 1.0}
    [sample] = result.samples
    assert (sample["item"], sample["cluster"], sample["target"]) == ("7", "v1", "abcdefgh")


# --- MLQA, XQuAD


def test_mlqa_german(shared_data):
    path = shared_data / "mlqa" / "mlqa.{language}.{language}.validation.parquet"
    asked = spec("mlqa", path, ["de"])
    perfect = run_benchmark(TableAnswers(lambda doc: doc["answers"][0]), asked)
    assert len(perfect.samples) == 512 == len({row["item"] for row in perfect.samples})
    metrics = [("mlqa_de_de", metric) for metric in ("f1", "exact_match", "f1_words")]
    assert scores(perfect) == dict.fromkeys(metrics, 1.0)
    assert len({row["cluster"] for row in perfect.samples}) < 512
    assert scores(run_benchmark(TableAnswers(), asked)) == dict.fromkeys(metrics, 0.0)


def test_mlqa_partial_answers_in_five_languages(tmp_path):
    """Words by white space and without articles; Chinese by character.

    zh: 中国 of 中国人, precision 1, recall 2/3. ar: the article ال is dropped, one word of three. hi: two words of three.
    de: one word too many, and an article that does not count. vi: one of two words.
    """
    planted = {
        "zh": ("中国人", "中国", 0.8),
        "ar": ("في مدينة القاهرة", "القاهرة", 0.5),
        "hi": ("नई दिल्ली में", "नई दिल्ली", 0.8),
        "de": ("das Rathaus", "Rathaus Hamburg", 2 / 3),
        "vi": ("Hà Nội", "Nội", 2 / 3),
    }
    for language, (gold, _, _) in planted.items():
        row = {"id": "1", "context": gold, "question": "?", "answers": {"text": [gold], "answer_start": [0]}}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{language}.parquet")
    answers = {gold: answer for gold, answer, _ in planted.values()}
    result = run_benchmark(
        TableAnswers(lambda doc: answers[doc["answers"][0]]), spec("mlqa", tmp_path / "{language}.parquet", list(planted))
    )
    assert result.shown == pytest.approx({language: value for language, (_, _, value) in planted.items()})


def test_xquad_in_nine_languages(shared_data):
    """The right answer with a word too many: 2n / (2n + 1) of n words; the stock task splits all languages at white space."""
    asked = spec("xquad", shared_data / "xquad" / "xquad.{language}.parquet", XQUAD)
    perfect = run_benchmark(TableAnswers(lambda doc: doc["answers"]["text"][0]), asked)
    assert perfect.shown == dict.fromkeys(XQUAD, 1.0)
    assert Counter(row["language"] for row in perfect.samples) == dict.fromkeys(XQUAD, 1190)
    by_language = {language: [row["item"] for row in perfect.samples if row["language"] == language] for language in XQUAD}
    assert all(items == by_language["en"] and len(set(items)) == 1190 for items in by_language.values())
    assert len({row["cluster"] for row in perfect.samples if row["language"] == "th"}) == 240
    few = asked.model_copy(update={"limit": 200})
    assert run_benchmark(TableAnswers(), few).shown == dict.fromkeys(XQUAD, 0.0)

    more = run_benchmark(TableAnswers(lambda doc: doc["answers"]["text"][0] + " wort"), few)
    checked: Counter[str] = Counter()
    for row in more.samples:
        gold = row["target"]
        plain = all(unicodedata.category(character)[0] in "LMN " for character in gold)
        words = gold.lower().split()
        if not plain or set(words) & {"a", "an", "the"}:
            continue
        f1 = {entry["metric"]: entry["value"] for entry in row["metrics"]}["f1"]
        assert f1 == pytest.approx(2 * len(words) / (2 * len(words) + 1)), row
        checked[row["language"]] += 1
    assert min(checked[language] for language in XQUAD) >= 30


# --- IFEval

SOLVED = {
    "punctuation:no_comma",
    "detectable_format:title",
    "change_case:english_lowercase",
    "keywords:existence",
    "length_constraints:number_sentences",
    "startend:end_checker",
}


def solvable(doc: dict[str, Any]) -> bool:
    """Whether an item's instructions are among `SOLVED`, each once."""
    names = doc["instruction_id_list"]
    return set(names) <= SOLVED and len(set(names)) == len(names)


def solve(doc: dict[str, Any]) -> str:
    """An answer that keeps all instructions of an item, if they are `solvable`; else none at all."""
    if not solvable(doc):
        return ""
    asked = dict(zip(doc["instruction_id_list"], doc["kwargs"], strict=True))
    sentences = asked.get("length_constraints:number_sentences", {})
    count = sentences["num_sentences"] if sentences.get("relation") == "at least" else 1
    words = " ".join(asked.get("keywords:existence", {}).get("keywords") or [])
    text = " ".join([f"<<title>> here are the words {words}.", *["here is one more sentence."] * (count - 1)])
    text = text.replace(".", "") if sentences.get("relation") == "less than" and "keywords:existence" not in asked else text
    return (text + " " + asked["startend:end_checker"]["end_phrase"]) if "startend:end_checker" in asked else text


@pytest.fixture(scope="module")
def punkt() -> None:
    """nltk's sentence tokenizer."""
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        pytest.skip("needs nltk's punkt_tab: NLTK_DATA=… (PyPI's llama-index-core holds a copy, under _static/nltk_cache)")


def test_ifeval(shared_data, punkt):
    path = shared_data / "ifeval" / "train.parquet"
    rows = pq.read_table(path).to_pylist()
    result = run_benchmark(TableAnswers(solve), spec("ifeval", path))
    solved = [solvable(row) for row in rows]
    assert len(result.samples) == 541 == len({row["item"] for row in result.samples}) and sum(solved) > 60
    kept = {
        row["item"]: {entry["metric"]: entry["value"] for entry in row["metrics"]}["prompt_level_strict_acc"]
        for row in result.samples
    }
    wrong = [row["key"] for row, right in zip(rows, solved, strict=True) if kept[str(row["key"])] != right]
    assert wrong == []
    assert result.shown["en"] == pytest.approx(sum(solved) / 541)
    instructions = [(right, len(row["instruction_id_list"])) for row, right in zip(rows, solved, strict=True)]
    by_instruction = sum(right * count for right, count in instructions) / sum(count for _, count in instructions)
    assert scores(result)["ifeval", "inst_level_strict_acc"] == pytest.approx(by_instruction)
    assert scores(result)["ifeval", "prompt_level_loose_acc"] == pytest.approx(sum(solved) / 541)


def test_ifeval_without_answers(shared_data, punkt):
    result = run_benchmark(TableAnswers(), spec("ifeval", shared_data / "ifeval" / "train.parquet", limit=50))
    assert set(scores(result).values()) == {0.0}


def test_ifeval_scores_the_same_answers_the_same(shared_data, punkt):
    """langdetect, left alone, takes such answers for one of five languages at random."""
    asked = spec("ifeval", shared_data / "ifeval" / "train.parquet")
    runs = [run_benchmark(TableAnswers(lambda doc: "qe az tb eee tt iii a the an uuu rr zz"), asked) for _ in range(2)]
    assert runs[0].samples == runs[1].samples


def test_ifeval_without_punkt_says_what_is_missing(shared_data, tmp_path, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    asked = spec("ifeval", shared_data / "ifeval" / "train.parquet")
    with pytest.raises(UserError, match="punkt_tab"):
        load_benchmark(asked)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_benchmark(asked.model_copy(update={"nltk_data": str(tmp_path)}))


# --- mistakes, and a real model


def test_what_is_wrong_with_files_is_the_users(shared_data, tmp_path):
    table = pq.read_table(shared_data / "mmlu" / "test.parquet")
    lacking = tmp_path / "lacking.parquet"
    pq.write_table(table.drop_columns(["choices"]), lacking)
    with pytest.raises(UserError, match=r"lacking\.parquet.*choices"):
        load_benchmark(spec("mmlu", lacking))
    partial = tmp_path / "partial.parquet"
    pq.write_table(table.filter(pc.field("subject") != "virology"), partial)
    with pytest.raises(UserError, match=r"virology"):
        load_benchmark(spec("mmlu", partial))
    with pytest.raises(UserError, match=r"absent\.parquet"):
        load_benchmark(spec("mmlu", tmp_path / "absent.parquet"))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"broken\.parquet"):
        load_benchmark(spec("hellaswag", broken))
    changed = spec("mmlu", lacking).model_copy(update={"items": ItemsSource(digest="0" * 64, files={"scored": str(lacking)})})
    with pytest.raises(UserError, match="changed"):
        load_benchmark(changed)


def test_a_tiny_model_answers_all_benchmarks(shared_data, random_model, mmlu, punkt):
    """One engine for choices and for texts; as many rows as asked for."""
    short = {"limit": 2, "backend": "vllm"}
    asked = [
        spec("mmlu", mmlu, **short),
        spec("hellaswag", shared_data / "hellaswag" / "validation_500_verbatim.parquet", **short),
        spec("mlqa", shared_data / "mlqa" / "mlqa.{language}.{language}.validation.parquet", ["de"], **short),
        spec("xquad", shared_data / "xquad" / "xquad.{language}.parquet", ["th", "zh"], **short),
        spec("ifeval", shared_data / "ifeval" / "train.parquet", **short),
    ]
    rows = [114, 2, 2, 4, 2]
    for one, expected in zip(asked, rows, strict=True):
        few = one.model_copy(update={"generation": GenerationSettings(max_new_tokens=16, max_length=256)})
        result = run_benchmark(load_model(random_model, few), few)
        assert len(result.samples) == expected
        assert all(0 <= value <= 1 for value in result.shown.values())
