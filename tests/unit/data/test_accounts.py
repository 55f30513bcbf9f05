"""Rows in are rows used, left out and set aside; more left out than is allowed is refused with the numbers."""

from collections import Counter

import pytest

from cft_ray.data.accounts import RowAccount, Tally, account_of, percent, refuse_lost
from cft_ray.data.languages import meant
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
