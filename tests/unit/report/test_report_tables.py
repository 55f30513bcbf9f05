"""What figures are drawn from, and what is said of them: which rows belong to a grid, names of files, tables to be read."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from insightgrid import DES, GRID, Shape, plant
from rich.console import Console
from rich.table import Table

import cft_ray
from cft_ray.errors import UserError
from cft_ray.metrics.schemas import table_of
from cft_ray.metrics.store import Append, TableStore
from cft_ray.report import write as writing
from cft_ray.report.correlation import (
    ENOUGH,
    PREDICTORS,
    WITHIN,
    _pairs,
    correlate,
    correlate_within,
    correlations,
    measured_predictors,
    pick,
    predictors,
    targets,
)
from cft_ray.report.tables import NothingToDraw, gather, grids
from cft_ray.report.write import Report, Written, correlation_table, file_name, written_table
from cft_ray.storage.root import Storage


def text_of(table: Table, width: int = 160) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def put(folder: Path, table: str, fingerprint: str, attempt: int, *rows: dict) -> None:
    TableStore(Storage(folder), table).commit([Append(fingerprint, attempt, 0, table_of(table, list(rows)))])


def test_only_the_rows_of_the_grid_are_gathered(tmp_path: Path) -> None:
    plant(tmp_path, Shape(pairs=1), frozenset())
    ran = {"kind": "similarity", "status": "done", "label": "mine"}
    measured = {"measure": "des", "left": "l", "right": "r", "value": 0.5}
    for fingerprint, grid in (("own", GRID), ("foreign", "other")):
        put(tmp_path, "stages", fingerprint, 1, ran | {"grid": grid})
        put(tmp_path, "similarity", fingerprint, 1, measured)
    found = gather(cft_ray.open(tmp_path), GRID)
    assert "own" in set(found.similarity["fingerprint"]) and "foreign" not in set(found.similarity["fingerprint"])
    assert grids(cft_ray.open(tmp_path)) == [GRID]
    with pytest.raises(UserError, match="no results of the grid other"):
        gather(cft_ray.open(tmp_path), "other")


def test_what_is_known_of_a_stage_is_what_its_last_attempt_said(tmp_path: Path) -> None:
    plant(tmp_path, Shape(pairs=1), frozenset())
    for attempt, outputs in ((2, '{"n": 2}'), (3, '{"n": 3}')):
        put(
            tmp_path,
            "stages",
            "f" * 64,
            attempt,
            {"kind": "drift", "status": "done", "label": f"try {attempt}", "outputs": outputs},
        )
    put(tmp_path, "stages", "e" * 64, 1, {"kind": "drift", "status": "done"})
    put(tmp_path, "stages", "d" * 64, 1, {"kind": "drift", "status": "failed", "label": "failed"})
    found = gather(cft_ray.open(tmp_path), GRID)
    assert (found.stages["f" * 64].label, found.stages["f" * 64].outputs) == ("try 3", {"n": 3})
    assert (found.label("f" * 64), found.label("e" * 64), found.label("d" * 64), found.label("alpaca")) == (
        *("try 3", "e" * 8, "d" * 64, "alpaca"),
    )
    assert found.stages["e" * 64].outputs == {}


def test_the_cells_that_stand_for_a_pair_are_those_without_mitigation(planted) -> None:
    found = planted(Shape(models=("m", "n"), pairs=2, strategies=("GR_10", "none"), seeds=(3, 4)))
    plain = found.plain_cells()
    assert found.models == ["m", "n"] and found.plain == "none"
    assert plain.select("model", "pair", "strategy", "seed").rows() == [
        (model, pair, "none", 3) for model in ("m", "n") for pair in ("letters→multi-letters", "instruct→multi-letters")
    ]
    others = planted(Shape(pairs=1, strategies=("GR_10", "LoRA")))
    assert others.plain == "GR_10" and set(others.plain_cells()["strategy"]) == {"GR_10"}


def test_what_a_stage_of_a_cell_says(planted) -> None:
    found = planted(Shape(pairs=1, strategies=("none", "LF_H2")))
    assert "strategy" in found.outputs("mistral-toy/letters→multi-letters/LF_H2/0", "phase2")
    assert found.outputs("mistral-toy/letters→multi-letters/LF_H2/0", "absent") == {}
    assert found.outputs("absent", "phase2") == {}


def test_measures_of_a_role_are_those_of_all_languages_together(tmp_path: Path) -> None:
    plant(tmp_path, Shape(pairs=1, strategies=("none",)), frozenset())
    before = gather(cft_ray.open(tmp_path), GRID)
    stage = before.roles.filter(pl.col("role") == "insight:des")["stage"][0]
    rows = before.measured("insight:des", "des")
    assert (
        rows["value"].to_list() == [DES["letters", "multi-letters"]] and rows["cell"].to_list() == before.cells["cell"].to_list()
    )
    other = {"measure": "des", "left": "l", "right": "r", "language": "de", "value": 0.1}
    TableStore(Storage(tmp_path), "similarity").commit([Append(stage, 1, 900, table_of("similarity", [other]))])
    assert gather(cft_ray.open(tmp_path), GRID).measured("insight:des", "des").height == 1


@pytest.mark.parametrize(
    ("name", "plain"), [("toy", True), ("a_b-c.1", True), ("é", True), ("a/b", False), (".a", False), ("-a", False), ("", False)]
)
def test_names_of_files(name: str, plain: bool) -> None:
    made = file_name(name)
    assert (made == name) == plain and "/" not in made and made[:1] not in (".", "") and "\0" not in made
    assert len(file_name("x" * 150)) == 150 and len(file_name("x" * 151)) == 150 + 9
    assert len({file_name(each) for each in ("a/b", "a_b", "a:b", "a b")}) == 4
    assert len(file_name("é" * 100).encode()) <= 150 + 9 and file_name("\ud800").isascii()


def test_what_is_left_out_is_said_with_the_way_to_get_it(tmp_path: Path) -> None:
    files = (tmp_path / "des.pdf", tmp_path / "des.svg", tmp_path / "other.png")
    lines = text_of(
        written_table(Report((Written("DES matrix", files), Written("drift", (), "no rows", "run it")), None), tmp_path), 300
    )
    assert "".join(lines).replace(" ", "").startswith(f"figuresin{tmp_path}")
    assert any(line.split() == ["DES", "matrix", "des.{pdf,svg},", "other.{png}"] for line in lines)
    assert any("left out: no rows" in line for line in lines) and any("fix: run it" in line for line in lines)
    with pytest.raises(NothingToDraw) as raised:
        raise NothingToDraw("nothing", "do it")
    assert (str(raised.value), raised.value.fix) == ("nothing", "do it")


def test_correlations_that_are_shown_are_those_that_were_found(planted) -> None:
    rows = correlations(planted(Shape(models=("m", "n"), pairs=4, strategies=("none", "GR_10", "LoRA"))))
    lines = text_of(correlation_table(rows, title="study"))
    assert lines[0] == "study"
    for measure in PREDICTORS:
        found = {
            name: pick(rows, predictor=measure.name, target="backward_transfer", method=name)
            for name in ("spearman", "kendall", "pearson")
        }
        numbers = [f"{one[key]:{form}}" for one in found.values() if one for key, form in (("value", "+.2f"), ("p", ".3f"))]
        (line,) = [line for line in lines if line.strip().startswith(measure.label)]
        said = [one["reading"] for one in found.values() if one and one["reading"]][:1]
        assert line.removeprefix(f" {measure.label}").split() == ["24", *numbers, *said]
    within = [line for line in lines if WITHIN in line]
    shown = [
        one
        for one in PREDICTORS
        if (found := pick(rows, predictor=one.name, target="backward_transfer", method="pearson", model=WITHIN))
        and found["value"] is not None
    ]
    assert len(within) == len(shown) > 0
    assert "Descriptive: too few distinct values" in " ".join(lines)
    own = rows.filter(pl.col("predictor") == "des")
    assert [one.name for one in measured_predictors(own)] == ["des"]
    assert len(text_of(correlation_table(own, title="x"))) < len(lines)
    enough = rows.with_columns(reading=pl.lit(""))
    assert "Descriptive" not in " ".join(text_of(correlation_table(enough, title="x")))
    unknown = own.with_columns(value=pl.lit(None, pl.Float64), p=pl.lit(None, pl.Float64))
    (line,) = [line for line in text_of(correlation_table(unknown, title="x")) if "DES" in line]
    assert line.split().count("–") == 6


def test_a_pick_is_of_all_cells_unless_a_model_is_named(planted) -> None:
    rows = correlations(planted(Shape(models=("m", "n"), pairs=4)))
    whole, one = (
        pick(rows, predictor="des", target="backward_transfer", method="kendall", **more) for more in ({}, {"model": "m"})
    )
    assert whole is not None and one is not None and (whole["model"], one["model"]) == ("all", "m") and whole["n"] == 2 * one["n"]
    assert pick(rows, predictor="none", target="backward_transfer", method="kendall") is None
    alone = correlations(planted(Shape(models=("m",), pairs=4, strategies=("none",))))
    assert set(alone["model"]) == {"all"}, "one model is all, and one cell a pair has nothing within"


def test_targets_are_the_changes_of_task_ability(planted) -> None:
    tables = planted(Shape(pairs=2))
    found, summary = targets(tables), tables.summary
    assert found.columns == ["cell", "backward_transfer", "letters_test", "numbers_test"]
    assert found["backward_transfer"].to_list() == summary["backward_transfer"].to_list()
    means = tables.results.filter(pl.col("language") == "mean")
    for name in ("letters_test", "numbers_test"):
        changes = dict(means.filter(pl.col("benchmark") == name).select("cell", "change").rows())
        assert dict(found.select("cell", name).rows()) == changes
    assert predictors(tables).height == tables.cells.height


def test_distinct_values_from_which_on_a_correlation_says_something() -> None:
    for count, reading in ((ENOUGH - 1, "descriptive"), (ENOUGH, "")):
        x = np.arange(float(count))
        assert {one.reading for one in correlate(x, x**2, resamples=9)} == {reading}
        assert {one.reading for one in correlate(x, np.minimum(x, count - 2), resamples=9)} == {"descriptive"}
        assert {one.reading for one in correlate_within([(x, x**2)], resamples=9)} == {reading}


def test_of_few_cells_all_pairings_are_taken_and_of_more_a_draw() -> None:
    for count, exact, pairings in ((7, True, 5040), (8, False, 99)):
        x = np.arange(float(count))
        assert {(one.exact, one.pairings) for one in correlate(x, x[::-1], resamples=99)} == {(exact, pairings)}
    assert {one.n for one in correlate(np.arange(3.0), np.arange(3.0))} == {3} and correlate(np.arange(3.0), np.arange(3.0))[
        0
    ].value
    assert {one.value for one in correlate(np.arange(2.0), np.arange(2.0))} == {None}


def test_a_p_value_within_groups_by_a_stratified_count() -> None:
    """Three groups of three that all rise: of 6 x 6 x 6 pairings one alone is as ordered. Twice that tail, from a draw."""
    rising = [(np.arange(3.0), np.arange(3.0)) for _ in range(3)]
    for one in correlate_within(rising, resamples=1999):
        assert one.value == pytest.approx(1.0) and one.pairings == 1999 and not one.exact
        assert one.p is not None and one.p == pytest.approx(2 / 216, abs=0.01) and one.p >= 2 / 2000
    falling = [(x, -y) for x, y in rising]
    assert [one.p for one in correlate_within(falling)] == pytest.approx([one.p for one in correlate_within(rising)], abs=0.01)
    mixed = [rising[0], falling[1]]
    assert {one.value for one in correlate_within(mixed)} == {0.0} and {one.p for one in correlate_within(mixed)} == {1.0}
    assert {(one.n, one.value, one.pairings) for one in correlate_within([])} == {(0, None, 0)}
    assert {one.n for one in correlate_within([*rising, (np.arange(2.0), np.arange(2.0)), (np.ones(4), np.arange(4.0))])} == {9}


def test_values_that_are_no_numbers_leave_their_cells_out(planted) -> None:
    tables = planted(Shape(pairs=4))
    joined = predictors(tables).with_columns(y=pl.lit(1.0))
    broken = joined.with_columns(des=pl.when(pl.int_range(pl.len()) == 0).then(float("nan")).otherwise(pl.col("des")))
    assert len(_pairs(joined, "des", "y")[0]) == 12 and len(_pairs(broken, "des", "y")[0]) == 11


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as raised:
        writing._put(tmp_path / "file" / "x.png", b"x")
    assert raised.value.where == str(tmp_path / "file" / "x.png")
    assert writing._put(tmp_path / "new" / "x.png", b"x").read_bytes() == b"x"
