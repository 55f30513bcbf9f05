import io
import json

import polars as pl
import pytest
from rich.console import Console

from cft_ray.errors import UserError
from cft_ray.metrics.show import exported, results_table


def summary(**changes) -> dict:
    row = {"grid": "g", "cell": "c", "model": "mistral-toy", "phase1": "a", "phase2": "b", "pair": "alpaca→multialpaca"}
    row |= {"strategy": "none", "seed": 0, "settings": "{}", "scores_due": 4, "scores_there": 4, "skipped": None}
    row |= {"ta_phase1": 0.9501, "ta_phase2": 0.45, "ta_change": -0.5001, "la_phase1": 0.1, "la_phase2": 0.9, "la_change": 0.8}
    return row | changes


def shown(rows: list[dict], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(results_table(pl.DataFrame(rows), width=width))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 120])
def test_numbers_are_whole_at_usual_widths(width):
    rows = [summary(), summary(strategy="spectral_[x]_strategy", settings='{"training.learning_rate": 1e-05}', seed=1)]
    lines = shown(rows, width)
    assert all(len(line) <= width for line in lines)
    assert sum(all(number in line for number in ("0.950", "0.450", "-0.500", "0.100", "0.900", "+0.800")) for line in lines) == 2
    assert "[x]" in "".join(lines)


def test_incomplete_cells_are_shown_as_such():
    nothing = dict.fromkeys(("ta_phase1", "ta_phase2", "ta_change", "la_phase1", "la_phase2", "la_change"))
    (line,) = [line for line in shown([summary(), summary(strategy="GR_10", scores_there=1, **nothing)], 100) if "GR_10" in line]
    assert "1/4" in line
    assert line.count("–") == 6


def test_what_is_skipped_is_said_once():
    text = "\n".join(shown([summary(skipped="x has no judge"), summary(skipped="x has no judge", seed=1)], 100))
    assert text.count("x has no judge") == 1


def test_no_change_has_no_sign():
    assert "-0.000" not in "".join(shown([summary(ta_change=-0.0001)], 100))


@pytest.mark.parametrize("width", [30, 36, 40, 43, 47, 60])
def test_names_and_numbers_are_whole_in_a_narrow_terminal(width):
    lines = shown([summary(), summary(strategy="GR_10", ta_phase2=0.7, scores_there=1)], width)
    assert all(len(line) <= width for line in lines), lines
    text = " ".join("".join(lines).split())
    for word in ("none", "GR_10", "0.950", "0.450", "0.700", "-0.500", "0.100", "0.900", "+0.800", "1/4"):
        assert word in text, (word, lines)
    ours = [line for line in lines if "none" in line or "GR_10" in line]
    assert len(ours) == 2


def test_exports_read_back():
    frame = pl.DataFrame([summary(), summary(seed=1, ta_phase1=None)])
    for form, read in (("parquet", pl.read_parquet), ("csv", pl.read_csv), ("json", pl.read_json)):
        assert read(io.BytesIO(exported(frame, form))).equals(frame)
    assert json.loads(exported(frame, "json"))[1]["ta_phase1"] is None


def test_an_unknown_format_is_named():
    with pytest.raises(UserError, match="xlsx"):
        exported(pl.DataFrame([summary()]), "xlsx")
