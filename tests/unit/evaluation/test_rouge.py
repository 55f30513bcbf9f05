"""ROUGE of XL-Sum's answers against values worked by hand: F1 = 2 · common / (words of target + words of answer)."""

import pytest

from cft_ray.evaluation.tasks.xlsum.rouge import WordTokenizer, rouge, score

WORDS = ("rouge1", "rouge2", "rougeL")
ASCII = ("rouge1_ascii", "rouge2_ascii", "rougeL_ascii")
TEXTS = {
    "ar": "رئيس الوزراء المصري يزور السعودية",
    "en": "the cat sat on the mat",
    "fr": "l’homme qu'il a vu",
    "hi": "भारत ने मैच जीता।",
    "ja": "警察は男を逮捕した。",
    "th": "แมวกินปลา",
    "zh": "我今天去北京大学学习中文。",
}


def values(result, names):
    return [result[name] for name in names]


@pytest.mark.parametrize("language", TEXTS)
def test_perfect_and_empty_answers(language):
    text = TEXTS[language]
    assert values(rouge(text, text), WORDS) == [1.0, 1.0, 1.0]
    for nothing in ("", " \n", "…!?", "😀"):
        assert set(rouge(text, nothing).values()) == set(rouge(nothing, text).values()) == {0.0}


@pytest.mark.parametrize("language", TEXTS)
def test_the_ascii_tokenizer_sees_latin_letters_alone(language):
    seen = 1.0 if language in ("en", "fr") else 0.0
    assert values(rouge(TEXTS[language], TEXTS[language]), ASCII) == [seen, seen, seen]


@pytest.mark.parametrize(
    ("language", "answer", "expected"),
    [
        # the, cat, on, mat of 6 and 6; "the cat" of 5 and 5
        ("en", "the cat lay on a mat", (8 / 12, 2 / 10, 8 / 12)),
        # three of 5 and 4, in order; one pair of 4 and 3
        ("ar", "الوزراء المصري في السعودية", (6 / 9, 2 / 7, 6 / 9)),
        # three of 4 and 5, in order; one pair of 3 and 4
        ("hi", "भारत ने आज मैच हारा", (6 / 9, 2 / 7, 6 / 9)),
        # 今天 去 北京 学习 of 我 今天 去 北京 大学 学习 中文, in order; two pairs of 6 and 3
        ("zh", "今天去北京学习", (8 / 11, 4 / 9, 8 / 11)),
        # 警察 は 女 を 逮捕 した, one of six another; three pairs of 5 and 5
        ("ja", "警察は女を逮捕した", (10 / 12, 6 / 10, 10 / 12)),
        # แมว กิน of 3 and 3; one pair of 2 and 2
        ("th", "แมวกินข้าว", (4 / 6, 2 / 4, 4 / 6)),
    ],
)
def test_partial_answers(language, answer, expected):
    result = rouge(TEXTS[language], answer)
    assert values(result, WORDS) == pytest.approx(expected)
    assert values(result, ASCII) == (pytest.approx(expected) if language == "en" else [0.0, 0.0, 0.0])
    assert result == rouge(TEXTS[language], answer.upper())


def test_the_ascii_variant_stems_and_the_other_does_not():
    result = rouge("cats sleep", "Cat sleeps!")
    assert (result["rouge1_ascii"], result["rouge1"]) == (1.0, 0.0)


def test_words():
    words = WordTokenizer().tokenize
    assert words("L'homme qu’il a vu, 😀 à 3,5 %") == ["l", "homme", "qu", "il", "a", "vu", "à", "3,5"]
    assert words("ＡＢＣ abc") == ["abc", "abc"] and words("STRASSE Straße") == ["strasse", "strasse"]
    assert len(words("ดื่มน้ำ")) == 2, "a Thai word whose vowel has a compatibility decomposition stays whole"
    assert words("e\N{COMBINING ACUTE ACCENT}te") == words("\N{LATIN SMALL LETTER E WITH ACUTE}te")


def test_score_is_what_the_harness_calls():
    assert score({"summary": "one two"}, ["two three"]) == rouge("one two", "two three")
    assert set(score({"summary": "one two"}, ["two"])) == {*WORDS, *ASCII}
