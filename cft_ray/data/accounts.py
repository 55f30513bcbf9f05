"""What became of the rows that a stage was given: every one is used, left out for a reason, or set aside on purpose.

A reason is a plain word (``no_output``, ``too_long``): whoever leaves a row out names it, and nobody else needs to know
the names. *Left out* are rows that somebody wanted and did not get; *set aside* those that the grid does not ask for
(another language, not in the sample). The share of the rows that may be left out is a setting of the grid.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cft_ray.errors import StageFailed, UserError

ALLOWED = 0.05
"""share of the rows that may be left out where the grid says nothing"""
KEY = "account"
"""of the account in a stage's outputs"""

_WORDS = {
    "no_output": "without an answer",
    "no_instruction": "without an instruction",
    "language_spelled_otherwise": "with their language spelled otherwise",
    "unknown_language": "of an unknown language",
    "no_language": "without a language",
    "other_language": "of other languages",
    "not_in_sample": "not in the sample",
    "too_long": "too long",
    "without_target": "without a token in the loss",
    "no_turns": "without turns",
    "not_a_conversation": "that are no conversation",
    "other_role": "with a turn of another role",
    "tool_turn": "with a tool's turn",
    "not_only_text": "that hold more than text",
    "empty_turn": "with an empty turn",
    "system_text_inside": "with system text inside",
    "turns_out_of_order": "whose turns are out of order",
    "ends_with_a_question": "that end with a question",
    "truncated": "cut",
    "answer_cut": "whose answer was cut when it was generated",
    "special_in_text": "that spell a control token in their text, taken as text",
    "seam": "whose tokens would join question and answer if both were encoded as one text",
    "earlier_untaught": "with an earlier answer that is not taught, as the chat template asks for it in other words",
    "template_changes_spelling": "in which the chat template changes what is spelled like a control token",
}


class RowAccount(BaseModel):
    """Rows in, rows used, and the difference by reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    came: int = Field(description="rows that the stage was given")
    used: int = Field(description="rows that its result is made of")
    left_out: dict[str, int] = Field(default_factory=dict, description="reason -> rows that were wanted and are missing")
    set_aside: dict[str, int] = Field(default_factory=dict, description="reason -> rows that the grid does not ask for")
    noted: dict[str, int] = Field(default_factory=dict, description="what is to be known of rows that are used -> rows")
    examples: dict[str, str] = Field(default_factory=dict, description="reason -> what was found, for messages")

    @property
    def lost(self) -> int:
        """Rows left out, all reasons together."""
        return sum(self.left_out.values())

    @property
    def wanted(self) -> int:
        """Rows that the grid asks for."""
        return self.came - sum(self.set_aside.values())

    @property
    def share(self) -> float:
        """Share of the wanted rows that were left out, 0 to 1."""
        return self.lost / self.wanted if self.wanted else 0.0

    def checked(self, stage: str) -> "RowAccount":
        """The same.

        Raises:
            StageFailed: rows in are not rows used, left out and set aside together: a row was lost without a reason.
        """
        parts = (self.used, *self.left_out.values(), *self.set_aside.values())
        if sum(parts) != self.came or min(parts) < 0:
            raise StageFailed(f"{stage} does not account for its rows: {self.came} came, {self} is not their sum")
        return self

    def reasons(self) -> str:
        """``40 too long (66.7 %), 2 without an answer (3.3 %)``: what was left out, most first."""
        return ", ".join(self._reason(name, count) for name, count in sorted(self.left_out.items(), key=lambda item: -item[1]))

    def _reason(self, name: str, count: int) -> str:
        found = f"; {self.examples[name]}" if name in self.examples else ""
        return f"{count:,} {words(name)} ({percent(count, self.wanted)}{found})"

    def __str__(self) -> str:
        parts = [f"{self.used:,} of {self.came:,} rows used"]
        parts += [f"{self.lost:,} left out ({percent(self.lost, self.wanted)}): {self.reasons()}"] if self.lost else []
        parts += [f"{count:,} {words(name)}" for name, count in self.set_aside.items()]
        parts += [f"used, but {count:,} ({percent(count, self.used)}) {words(name)}" for name, count in self.noted.items()]
        return "; ".join(parts)


class Tally:
    """Counts while rows pass by; `account` at the end."""

    def __init__(self) -> None:
        self.came = 0
        self.left_out: Counter[str] = Counter()
        self.set_aside: Counter[str] = Counter()
        self.found: dict[str, Counter[str]] = {}
        """reason -> what was found in the row -> rows"""

    def account(self, used: int) -> RowAccount:
        """Of what was counted so far."""
        return RowAccount(
            came=self.came,
            used=used,
            left_out=_sorted(self.left_out),
            set_aside=_sorted(self.set_aside),
            examples={reason: _most(found) for reason, found in sorted(self.found.items())},
        )


def account_of(outputs: Mapping[str, Any]) -> RowAccount | None:
    """The account in a stage's outputs; None for a stage that reads no rows, or an artifact of an older version."""
    return RowAccount.model_validate(outputs[KEY]) if outputs.get(KEY) is not None else None


def refuse_lost(account: RowAccount, allowed: float, *, what: str, where: str, setting: str, fix: str = "mend the rows") -> None:
    """Refuse to go on where more rows are left out than the grid allows.

    Args:
        account: of the rows.
        allowed: share of the wanted rows that may be left out.
        what: whose rows.
        where: file or place in the grid.
        setting: that allows more, as it is written after ``--set``.
        fix: what would be better than allowing it.

    Raises:
        UserError: naming numbers, shares, reasons and the setting.
    """
    if account.share <= allowed:
        return
    enough = math.ceil(account.share * 100) / 100
    raise UserError(
        f"{account.lost:,} of {account.wanted:,} rows of {what} are left out ({percent(account.lost, account.wanted)}, "
        f"{100 * allowed:.4g} % is allowed): {account.reasons()}",
        where=where,
        fix=f"{fix}, or allow it in the grid: {setting}={enough:g}",
    )


def words(reason: str) -> str:
    """A reason as people read it."""
    return _WORDS.get(reason, reason.replace("_", " "))


def percent(count: int, total: int) -> str:
    """``66.7 %``; never 0 or 100 for a count that is neither."""
    share = 100 * count / total if total else 0.0
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in sorted(counter.items()) if count}


def _most(found: Counter[str]) -> str:
    shown = [f"{text[:40]!r} {count:,} times" for text, count in found.most_common(3)]
    return ", ".join(shown + (["…"] if len(found) > len(shown) else []))
