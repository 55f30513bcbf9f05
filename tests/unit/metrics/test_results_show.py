import io
import json
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cft_ray.data.accounts import RowAccount
from cft_ray.errors import UserError
from cft_ray.metrics.reading import open_results
from cft_ray.metrics.schemas import table_of
from cft_ray.metrics.show import exported, results_table, row_lines
from cft_ray.metrics.store import Append, TableStore
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage
from cft_ray.stages.accounting import settle
from cft_ray.storage.root import Storage


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


@pytest.mark.parametrize("width", range(30, 100))
def test_a_short_name_stands_in_one_line_at_any_width(width):
    """Names of up to 20 columns: where the numbers would take their room, they stand below."""
    lines = shown([summary(strategy="freeze_first_12_xy"), summary(scores_there=1)], width)
    assert all(len(line) <= width for line in lines)
    assert sum("freeze_first_12_xy" in line for line in lines) == 1
    together = "freeze_first_12_xy" in next(line for line in lines if "0.950" in line)
    # The name of 20, four numbers of 5 and two of 6 and "scores", a blank between each two and at either edge.
    assert together == (width >= 20 + 4 * 6 + 2 * 7 + 7 + 2)


def test_narrow_numbers_stand_below_their_headings():
    lines = shown([summary(ta_phase1=None, ta_change=0.5, la_change=0.0)], 40)
    head, task, language = lines[1], *(line for line in lines if line.strip()[:2] in {"TA", "LA"} and "ability" not in line)
    ends = [head.index(" 1") + 2, head.index(" 2") + 2, head.index("change") + 6]
    assert [task[end - 6 : end].strip() for end in ends] == ["–", "0.450", "+0.500"]
    assert [language[end - 6 : end].strip() for end in ends] == ["0.100", "0.900", "0.000"]


def test_seeds_and_settings_are_named_where_they_tell_cells_apart():
    swept = [summary(settings=json.dumps({"training.learning_rate": rate})) for rate in (1e-5, 1e-4)]
    text = "\n".join(shown(swept, 100))
    assert "learning_rate=1e-05" in text and "learning_rate=0.0001" in text and "seed" not in text
    text = "\n".join(shown([summary(seed=3), summary(seed=4)], 100))
    assert "seed 3" in text and "seed 4" in text and "learning_rate" not in text


def test_cells_stand_under_their_model_and_pair_and_reasons_in_order():
    rows = [
        summary(model=model, skipped=f"reason {place}") for place, model in enumerate(["a", "b", "c", "d", "e", "f", "g", "h"])
    ]
    lines = [line.strip() for line in shown(rows, 100)]
    order = [place for model in "abcdefgh" for place, line in enumerate(lines) if line == f"{model} alpaca→multialpaca"]
    assert len(order) == 8 and order == sorted(order)
    text = " ".join(lines)
    assert [text.index(f"reason {place}") for place in range(8)] == sorted(text.index(f"reason {place}") for place in range(8))


def test_incomplete_cells_are_counted():
    rows = [summary(), summary(strategy="GR_5", scores_there=3), summary(strategy="GR_10", scores_there=0)]
    assert "2 of 3 cells incomplete" in " ".join(" ".join(shown(rows, 100)).split())
    assert "incomplete" not in " ".join(shown([summary()], 100))


@pytest.mark.parametrize(("change", "colour"), [(0.2, "green"), (-0.2, "red"), (0.0001, ""), (None, "dim")])
def test_gains_are_green_and_losses_red(change, colour):
    table = results_table(pl.DataFrame([summary(ta_change=change)], schema_overrides={"ta_change": pl.Float64}))
    texts: list[Any] = list(table.columns[3].cells)
    assert texts[-1].style == colour


def test_only_the_rows_of_the_grid_have_a_line(tmp_path):
    storage = Storage(tmp_path)
    for fingerprint, grid, lost in (("a" * 64, "mine", 2), ("b" * 64, "other", 3), ("c" * 64, "mine", 0)):
        account = RowAccount(came=10, used=10 - lost, left_out={"no_output": lost} if lost else {}, set_aside={})
        spec = DatasetSpec(toy="alpaca", columns={}, languages=("en",))
        label = None if grid == "other" else f"set {fingerprint[0]}"
        (tmp_path / fingerprint).mkdir()
        settle(Stage(spec, {}, label or ""), {"account": account.model_dump()}, tmp_path / fingerprint)
        body = pq.read_table(tmp_path / fingerprint / "tables" / "rows.parquet")
        if label is None:
            body = body.set_column(body.column_names.index("label"), "label", pa.nulls(body.num_rows, pa.string()))
        TableStore(storage, "rows").commit([Append(fingerprint, 1, 0, table_of("rows", body))])
        stage = table_of("stages", [{"kind": "dataset", "status": "done", "grid": grid}])
        TableStore(storage, "stages").commit([Append(fingerprint, 1, 0, stage)])
    (line,) = row_lines(open_results(tmp_path), "mine")
    assert line.startswith("rows of dataset set a: 8 of 10 rows used")
    both = row_lines(open_results(tmp_path), None)
    assert len(both) == 2 and any(line.startswith("rows of dataset bbbbbbbbbbbb: 7 of 10") for line in both)
    assert row_lines(open_results(tmp_path), "absent") == []


def test_exports_read_back():
    frame = pl.DataFrame([summary(), summary(seed=1, ta_phase1=None)])
    for form, read in (("parquet", pl.read_parquet), ("csv", pl.read_csv), ("json", pl.read_json)):
        assert read(io.BytesIO(exported(frame, form))).equals(frame)
    assert json.loads(exported(frame, "json"))[1]["ta_phase1"] is None


def test_an_unknown_format_is_named():
    with pytest.raises(UserError, match="xlsx"):
        exported(pl.DataFrame([summary()]), "xlsx")


@pytest.mark.parametrize("width", [58, 59, 60, 61])
def test_without_a_column_of_scores_there_is_more_room(width):
    lines = shown([summary(strategy="freeze_first_12_xy")], width)
    together = "freeze_first_12_xy" in next(line for line in lines if "0.950" in line)
    assert together == (width >= 20 + 4 * 6 + 2 * 7 + 2)


def test_each_number_stands_right_below_its_heading():
    lines = shown([summary(), summary(scores_there=1, strategy="GR_10")], 100)
    head, row = next(line for line in lines if "TA 1" in line), next(line for line in lines if "GR_10" in line)
    assert head.split() == ["cell", "TA", "1", "TA", "2", "change", "LA", "1", "LA", "2", "change", "scores"]
    ends = [head.index(name) + len(name) for name in ("TA 1", "TA 2", "change", "LA 1", "LA 2")] + [head.rindex("change") + 6]
    numbers = ["0.950", "0.450", "-0.500", "0.100", "0.900", "+0.800"]
    assert [row[:end].split()[-1] for end in ends] == numbers
    assert row.rstrip().endswith("1/4") and head.rstrip().endswith("scores")


def test_a_table_has_a_title_above_it_and_a_caption_below_both_left():
    console = Console(width=100, file=io.StringIO())
    console.print(results_table(pl.DataFrame([summary()]), title="study", width=100))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].rstrip() == "study" and lines[-1].startswith("TA task ability")


@pytest.mark.parametrize("absent", ["ta_phase1", "ta_phase2", "ta_change"])
def test_what_is_absent_stands_where_its_number_would(absent):
    whole, lines = (shown([summary(**change)], 40) for change in ({}, {absent: None}))
    row = {"ta_phase1": "0.950", "ta_phase2": "0.450", "ta_change": "-0.500"}[absent]
    before, after = (next(line for line in text if line.strip().startswith("TA 0") or "–" in line) for text in (whole, lines))
    assert after.rstrip() == before.replace(row, "–".rjust(len(row))).rstrip()
