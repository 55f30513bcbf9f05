"""Rows in are rows used, left out and set aside; more left out than is allowed is refused with the numbers."""

from collections import Counter

import pytest

from cft_ray.data.accounts import RowAccount, Tally, account_of, percent, refuse_lost, words
from cft_ray.data.languages import filled, meant, names_language
from cft_ray.errors import StageFailed, UserError

LOST = RowAccount(came=100, used=50, left_out={"too_long": 8, "no_output": 2}, set_aside={"other_language": 40})


def test_shares_are_of_the_rows_that_are_wanted() -> None:
    assert LOST.checked("x").share == 10 / 60
    assert str(LOST) == (
        "50 of 100 rows used; 10 left out (16.7 %): 8 too long (13.3 %), 2 without an answer (3.3 %); 40 of other languages"
    )
    assert account_of({"account": LOST.model_dump()}) == LOST and account_of({"rows": 3}) is None


@pytest.mark.parametrize("change", [{"used": 49}, {"used": 51}, {"came": 99}, {"set_aside": {}}])
def test_a_row_without_a_reason_is_an_error(change: dict[str, object]) -> None:
    account = LOST.model_copy(update=change)
    with pytest.raises(StageFailed, match="x does not account for its rows"):
        account.checked("x")


def test_negative_counts_are_no_account() -> None:
    with pytest.raises(StageFailed):
        RowAccount(came=1, used=2, left_out={"too_long": -1}).checked("x")


def test_what_is_allowed_passes_and_more_is_refused_with_the_setting() -> None:
    refuse_lost(LOST, 10 / 60, what="de", where="f", setting="allow_left_out")
    with pytest.raises(UserError) as raised:
        refuse_lost(LOST, 0.166, what="de", where="f", setting="datasets.de.allow_left_out")
    assert "10 of 60 rows of de are left out (16.7 %, 16.6 % is allowed)" in raised.value.what
    assert "8 too long" in raised.value.what and "datasets.de.allow_left_out=0.17" in str(raised.value.fix)
    refuse_lost(LOST, 0.17, what="de", where="f", setting="x")


def test_all_rows_set_aside_is_no_loss() -> None:
    assert RowAccount(came=3, used=0, set_aside={"other_language": 3}).checked("x").share == 0


def test_percent_does_not_round_to_nothing_or_to_all() -> None:
    assert [percent(count, 10_000) for count in (0, 1, 10, 9_999, 10_000)] == ["0.0 %", "< 0.1 %", "0.1 %", "> 99.9 %", "100.0 %"]


def test_what_was_found_is_kept_for_the_message() -> None:
    tally = Tally()
    tally.came = 3
    tally.left_out["unknown_language"] = 3
    tally.found["unknown_language"] = Counter({"Klingon": 2, "?": 1})
    account = tally.account(0).checked("x")
    assert account.examples == {"unknown_language": "'Klingon' 2 times, '?' 1 times"}


@pytest.mark.parametrize("text", ["DE", "German", "german ", "deu", "ger", "de-DE", "de_AT", "deu_Latn", "Deutsch"])
def test_spellings_of_a_language(text: str) -> None:
    assert meant(text) == "de"


@pytest.mark.parametrize("text", ["", "xx", "klingon", "d"])
def test_what_is_no_language(text: str) -> None:
    assert meant(text) is None


def test_an_account_in_words() -> None:
    account = RowAccount(
        came=20, used=10, left_out={"too_long": 1, "no_output": 4}, set_aside={"not_in_sample": 5}, noted={"truncated": 3},
        examples={"too_long": "'x' 2 times"},
    )  # fmt: skip
    assert str(account) == (
        "10 of 20 rows used; 5 left out (33.3 %): 4 without an answer (26.7 %), 1 too long (6.7 %; 'x' 2 times); "
        "5 not in the sample; used, but 3 (30.0 %) cut"
    )
    assert str(RowAccount(came=1, used=1)) == "1 of 1 rows used" and words("own_reason") == "own reason"
    assert str(RowAccount(came=3000, used=1000, set_aside={"other_language": 2000})) == (
        "1,000 of 3,000 rows used; 2,000 of other languages"
    )


def test_three_spellings_are_shown_each_cut_to_forty_letters() -> None:
    tally = Tally()
    tally.came = 10
    tally.left_out["unknown_language"], tally.left_out["no_output"] = 10, 0
    tally.found["unknown_language"] = Counter({"a" * 41: 4, "b": 3, "c": 2, "d": 1})
    account = tally.account(0)
    assert account.examples == {"unknown_language": f"'{'a' * 40}' 4 times, 'b' 3 times, 'c' 2 times, …"}
    assert account.left_out == {"unknown_language": 10}, "what never happened is no reason"
    tally.found["unknown_language"] = Counter({"a": 2, "b": 2, "c": 2})
    assert "…" not in tally.account(0).examples["unknown_language"]


@pytest.mark.parametrize(
    ("count", "total", "said"),
    [
        (1, 1000, "0.1 %"),
        (1, 1001, "< 0.1 %"),
        (999, 1000, "99.9 %"),
        (1000, 1001, "> 99.9 %"),
        (1, 2, "50.0 %"),
        (0, 0, "0.0 %"),
    ],
)
def test_shares_near_nothing_and_near_all(count: int, total: int, said: str) -> None:
    assert percent(count, total) == said


def test_the_setting_that_is_advised_allows_what_was_lost() -> None:
    for lost, total in ((1, 3), (7, 100), (1, 100), (999, 1000)):
        account = RowAccount(came=total, used=total - lost, left_out={"no_output": lost})
        with pytest.raises(UserError) as raised:
            refuse_lost(account, 0.0, what="x", where="f", setting="share")
        advised = float(str(raised.value.fix).rpartition("=")[2])
        assert 0 <= advised - account.share < 0.01 and str(raised.value.fix).startswith("mend the rows, or allow it")
        refuse_lost(account, advised, what="x", where="f", setting="share")


@pytest.mark.parametrize(
    ("pattern", "language", "wanted"),
    [
        ("a-{language}.json", "de", "a-de.json"), ("{flores}/{language}", "zh", "zho_Hans/zh"), ("plain", "de", "plain"),
        ("{language}", "zh-TW", "zh-TW"), ("{language}", "", ""),
    ],
)  # fmt: skip
def test_a_language_takes_its_place_in_a_pattern(pattern: str, language: str, wanted: str) -> None:
    assert filled(pattern, language) == wanted and names_language(pattern) == (pattern != "plain")


@pytest.mark.parametrize(("pattern", "language"), [("{language}", "../x"), ("{language}", "a/b"), ("{flores}", "xx")])
def test_what_is_no_language_takes_no_place(pattern: str, language: str) -> None:
    with pytest.raises(UserError):
        filled(pattern, language)
