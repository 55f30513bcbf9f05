"""Words, repetition, languages and self-BLEU of texts whose values are worked by hand or come from the peer."""

import pytest
import sacrebleu

from cft_ray.replay_quality.text import SELF_BLEU_ANSWERS, identified, repetition, self_bleu, words


def test_words_in_languages_with_and_without_spaces() -> None:
    assert words("Hello,  world!\n") == ["Hello", ",", "world", "!"]
    assert words("ภาษาไทย") == ["ภาษา", "ไทย"]
    assert words(" \n") == []


def test_repetition_by_hand() -> None:
    units = ["a", "b", "a", "b", "a"]  # ab ba ab ba: two of four are new; aba bab aba: two of three
    assert repetition(units, 1) == pytest.approx(1 - 2 / 5)
    assert repetition(units, 2) == pytest.approx(1 - 2 / 4)
    assert repetition(units, 3) == pytest.approx(1 - 2 / 3)
    assert repetition(units, 5) == 0.0
    assert repetition(units, 6) is None


def test_languages() -> None:
    assert identified("The weather was good, so we went for a long walk along the river.") == "en"
    assert identified("Das Wetter war gut, also gingen wir lange am Fluss entlang spazieren.") == "de"
    assert identified("12 + 7 = 19") is None


def test_self_bleu_ends_and_reference() -> None:
    same = [words("the cat sat on the mat")] * 3
    assert self_bleu(same, 0) == (pytest.approx(1.0), 3)
    apart = [words("one two three four"), words("five six seven eight"), words("nine ten eleven twelve")]
    assert self_bleu(apart, 0)[0] == pytest.approx(0.0, abs=0.1)  # smoothed: near 0
    mixed = ["the cat sat on the mat", "the cat sat on a chair", "a dog ran off"]
    expected = [sacrebleu.sentence_bleu(text, [one for one in mixed if one != text]).score / 100 for text in mixed]
    value, count = self_bleu([text.split() for text in mixed], 0)
    assert (value, count) == (pytest.approx(sum(expected) / 3, abs=1e-9), 3)
    assert self_bleu([["alone"], []], 0) == (None, 1)


def test_self_bleu_takes_as_many_answers_whatever_there_are() -> None:
    answers = [[f"w{number % 7}", f"v{number % 5}", f"u{number}", "end"[: number % 4]] for number in range(2 * SELF_BLEU_ANSWERS)]
    value, count = self_bleu(answers, 1)
    assert count == SELF_BLEU_ANSWERS
    assert self_bleu(answers, 1)[0] == value
    assert self_bleu(answers[:SELF_BLEU_ANSWERS], 1)[0] != value


def test_no_answer_is_drawn_twice() -> None:
    apart = [[f"{letter}{number}" for letter in "abcd"] for number in range(SELF_BLEU_ANSWERS + 20)]
    assert self_bleu(apart, 0)[0] == pytest.approx(0.0, abs=0.1)  # an answer beside itself would count 1
