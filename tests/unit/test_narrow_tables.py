"""Tables in consoles of any width: every word and number is whole."""

import io
import re

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cft_ray.doctor import Check, table
from cft_ray.grid.schema import load_grid
from cft_ray.output import fitted
from cft_ray.plan.build import build
from cft_ray.plan.show import show


def printed(made: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(fitted(made, console))
    return console.file.getvalue()  # type: ignore[attr-defined]


def numbers() -> Table:
    made = Table(title="title", box=None)
    made.add_column("name")
    for column in ("tokens", "hours", "note"):
        made.add_column(column, justify="right", no_wrap=column != "note")
    made.add_row("first [bold]one[/]", "123.4M", Text("5,678"), "")
    made.add_row("second", "9", "10", "two words")
    return made


def test_a_table_that_fits_is_one_and_one_that_does_not_is_a_list():
    """Needed are second, 123.4M, 5,678 and words with a blank on either side."""
    widths = {width: printed(numbers(), width) for width in range(16, 60)}
    lists = [width for width, text in widths.items() if "tokens: 123.4M" in text]
    assert lists == list(range(16, 6 + 6 + 5 + 5 + 4 * 2))
    for width, text in widths.items():
        assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
        for word in ("first", "one", "123.4M", "5,678", "second", "9", "10", "two", "words", "hours"):
            assert re.search(rf"(^|\s){re.escape(word)}:?($|\s)", text, re.MULTILINE), (word, text)
    assert widths[20].split("\n")[:5] == ["title", "- first one", "  tokens: 123.4M", "  hours: 5,678", "- second"]
    assert "note: two words" in widths[20] and widths[20].count("note") == 1


@pytest.mark.parametrize("width", [30, 40, 60])
def test_doctor_in_a_narrow_terminal(width):
    checks = [Check("python", "ok", "3.11.7 on Linux"), Check("storage", "broken", "cannot [be] written", "free/space/on/a/disk")]
    text = printed(table(checks), width)
    assert "…" not in text and all(len(line) <= width for line in text.splitlines())
    for word in ("python", "3.11.7", "storage", "broken", "cannot", "[be]", "free/space/on/a/disk", "fix:"):
        assert word in text, text


@pytest.mark.parametrize("width", [36, 40, 80])
def test_a_plan_in_a_narrow_terminal(repository, width):
    """Everything that a wide terminal shows, but for what the first column is called."""
    grid = load_grid(repository / "grids/smoke.yaml", [])
    plan = build(grid)

    def words(columns: int) -> set[str]:
        text = io.StringIO()
        show(plan, grid, Console(file=text, width=columns), [])
        lines = text.getvalue().splitlines()
        assert all(len(line) <= columns for line in lines)
        return set(re.findall(r"[\w.,?→+]+", " ".join(lines)))

    wide = {word for word in words(400) if len(word) <= width - 12}
    assert wide - words(width) <= {"model", "training", "stage", "kind"}
