"""What counts when stages ran more than once, the join, and the signs of the metrics, worked by hand."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import cft_ray
from cft_ray.errors import UserError
from cft_ray.grid.settings import GenerationSettings
from cft_ray.metrics.cells import cell_rows, cells_key
from cft_ray.metrics.reading import Results
from cft_ray.metrics.schemas import SCHEMAS, table_of
from cft_ray.metrics.store import Append, DamagedFileWarning, TableStore
from cft_ray.plan.specs import EvaluateSpec
from cft_ray.plan.stage import Plan, PlannedCell, Stage
from cft_ray.storage.root import Storage


def put(folder: Path, table: str, rows: list[dict], fingerprint: str, attempt: int = 1, sequence: int = 0) -> None:
    store = TableStore(Storage(folder), table)
    store.commit([Append(fingerprint, attempt, sequence, table_of(table, rows))])


def done(folder: Path, fingerprint: str, attempt: int = 1, status: str = "done") -> None:
    put(folder, "stages", [{"kind": "evaluate", "status": status}], fingerprint, attempt)


def score(value: float | None, language: str = "en", *, ability: str = "TA", benchmark: str = "b", shown: bool = True) -> dict:
    metric = "acc" if shown else "other"
    key = {"ability": ability, "benchmark": benchmark, "task": f"{benchmark}_{language}", "language": language}
    return {**key, "metric": metric, "shown": shown, "value": value}


def cell(name: str = "m/a→b/none/0", strategy: str = "none", **roles: str) -> PlannedCell:
    return PlannedCell(name, "m", "a", "b", strategy, 0, {}, {role.replace("__", ":"): stage for role, stage in roles.items()})


def plan_cells(folder: Path, *cells: PlannedCell) -> None:
    plan = Plan("grid", {}, cells)
    key = cells_key(plan)
    put(folder, "cells", cell_rows(plan), key["fingerprint"], key["attempt"])


def evaluated(folder: Path, fingerprint: str, *rows: dict) -> str:
    put(folder, "scores", list(rows), fingerprint)
    done(folder, fingerprint)
    return fingerprint


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """One cell: TA benchmarks x and y, LA benchmark z in two languages, base evaluated."""
    table = {  # R[i, t]
        ("base", "TA", "x"): 0.2,
        ("base", "TA", "y"): 0.9,
        ("phase1", "TA", "x"): 0.8,
        ("phase1", "TA", "y"): 0.6,
        ("phase2", "TA", "x"): 0.5,
        ("phase2", "TA", "y"): 0.7,
    }
    roles = {}
    for (phase, ability, benchmark), value in table.items():
        stage = evaluated(tmp_path, f"{phase}-{benchmark}", score(value, ability=ability, benchmark=benchmark))
        roles[f"{phase}__{ability}__{benchmark}"] = stage
    for phase, (german, swahili) in {"base": (0.1, 0.3), "phase1": (0.3, 0.3), "phase2": (0.9, 0.5)}.items():
        rows = [score(value, language, ability="LA", benchmark="z") for language, value in (("de", german), ("sw", swahili))]
        roles[f"{phase}__LA__z"] = evaluated(tmp_path, f"{phase}-z", *rows)
    plan_cells(tmp_path, cell(**roles))
    return tmp_path


def test_metrics_by_hand(by_hand: Path) -> None:
    (row,) = cft_ray.open(by_hand).summary().collect().to_dicts()
    assert row["ta_base"] == pytest.approx(0.55)
    assert row["ta_phase1"] == pytest.approx(0.7)
    assert row["ta_phase2"] == pytest.approx(0.6)
    assert row["ta_change"] == pytest.approx(-0.1)
    assert row["la_base"] == pytest.approx(0.2)
    assert row["la_phase1"] == pytest.approx(0.3)
    assert row["la_phase2"] == pytest.approx(0.7)
    assert row["la_change"] == pytest.approx(0.4)
    assert row["backward_transfer"] == pytest.approx(((0.5 - 0.8) + (0.7 - 0.6)) / 2)  # -0.1: x was forgotten
    assert row["forgetting"] == pytest.approx(((0.8 - 0.5) + (0.9 - 0.7)) / 2)  # +0.25: both are below their best
    assert row["forward_transfer"] == pytest.approx(0.3 - 0.2)
    assert row["learning"] == pytest.approx(0.7 - 0.3)
    assert (row["scores_due"], row["scores_there"]) == (9, 9)


def test_results_by_hand(by_hand: Path) -> None:
    rows = cft_ray.open(by_hand).results().collect()
    assert rows.select("benchmark", "language").rows() == [
        *[("x", "en"), ("x", "mean"), ("y", "en"), ("y", "mean")],
        *[("z", "de"), ("z", "sw"), ("z", "mean")],
    ]
    german = rows.row(by_predicate=(pl.col("language") == "de"), named=True)
    assert (german["base_score"], german["phase1_score"], german["phase2_score"]) == (0.1, 0.3, 0.9)
    assert german["change"] == pytest.approx(0.6)
    assert (german["pair"], german["ability"], german["metric"], german["settings"]) == ("a→b", "LA", "acc", "{}")


def test_a_skipped_benchmark_is_no_gap_and_in_no_mean(tmp_path: Path) -> None:
    spec = EvaluateSpec(
        benchmark="j", ability="TA", tasks={"en": "t"}, metric="win_rate", generation=GenerationSettings(max_new_tokens=1)
    )
    judged = Stage(spec, skip="j has no judge")
    scored = {f"{phase}:TA:x": evaluated(tmp_path, phase, score(value)) for phase, value in (("phase1", 0.8), ("phase2", 0.5))}
    roles = {**scored, "phase1:TA:j": judged.fingerprint, "phase2:TA:j": judged.fingerprint}
    plan = Plan("grid", {judged.fingerprint: judged}, (PlannedCell("c", "m", "a", "b", "none", 0, {}, roles),))
    key = cells_key(plan)
    put(tmp_path, "cells", cell_rows(plan), key["fingerprint"], key["attempt"])
    (row,) = cft_ray.open(tmp_path).summary().collect().to_dicts()
    assert (row["ta_phase1"], row["ta_phase2"], row["skipped"]) == (0.8, 0.5, "j has no judge")
    assert row["backward_transfer"] == pytest.approx(-0.3)
    assert (row["scores_due"], row["scores_there"]) == (2, 2)
    rows = cft_ray.open(tmp_path).results().filter(pl.col("language") == "mean").collect().to_dicts()
    assert {row["benchmark"]: (row["phase2_score"], row["skipped"]) for row in rows} == {
        "x": (0.5, None),
        "j": (None, "j has no judge"),
    }


def test_without_base_only_what_needs_it_is_null(tmp_path: Path) -> None:
    roles = {f"{phase}__TA__x": evaluated(tmp_path, phase, score(value)) for phase, value in (("phase1", 0.8), ("phase2", 0.5))}
    plan_cells(tmp_path, cell(**roles))
    (row,) = cft_ray.open(tmp_path).summary().collect().to_dicts()
    assert row["backward_transfer"] == pytest.approx(-0.3)
    assert row["forgetting"] is None
    assert row["forward_transfer"] is None
    assert row["ta_base"] is None
    assert row["la_phase2"] is None


def test_an_incomplete_cell_is_there_with_nulls(tmp_path: Path) -> None:
    roles = {"phase1__TA__x": evaluated(tmp_path, "p1", score(0.8, benchmark="x")), "phase2__TA__x": "p2", "phase2__TA__y": "p3"}
    plan_cells(tmp_path, cell(**roles))
    results = cft_ray.open(tmp_path)
    assert results.results().select("benchmark", "language", "phase1_score", "phase2_score").collect().rows() == [
        ("x", "en", 0.8, None),
        ("x", "mean", 0.8, None),
        ("y", "mean", None, None),
    ]
    (row,) = results.summary().collect().to_dicts()
    assert (row["ta_phase1"], row["ta_phase2"], row["ta_change"]) == (None, None, None)  # half a mean is no mean
    assert (row["scores_due"], row["scores_there"]) == (3, 1)


def test_a_language_without_value_leaves_no_mean(tmp_path: Path) -> None:
    stage = evaluated(tmp_path, "p2", score(0.5, "de", ability="LA"), score(None, "sw", ability="LA"))
    plan_cells(tmp_path, cell(phase2__LA__b=stage))
    rows = cft_ray.open(tmp_path).results().select("language", "phase2_score").collect().rows()
    assert rows == [("de", 0.5), ("sw", None), ("mean", None)]


def test_scores_come_from_the_last_done_attempt(tmp_path: Path) -> None:
    for attempt, status in ((1, "done"), (2, "done"), (3, "failed")):
        put(tmp_path, "scores", [score(attempt / 10, "de"), score(attempt / 10, "sw")][:attempt], "f", attempt)
        done(tmp_path, "f", attempt, status)
    put(tmp_path, "scores", [score(0.9)], "unfinished")
    assert cft_ray.open(tmp_path).scores().select("fingerprint", "value").collect().rows() == [("f", 0.2), ("f", 0.2)]


def test_a_stage_is_shown_in_its_last_state(tmp_path: Path) -> None:
    put(tmp_path, "stages", [{"kind": "finetune", "status": "running"}], "f", 1, 0)
    assert cft_ray.open(tmp_path).stages().collect()["status"].to_list() == ["running"]
    put(tmp_path, "stages", [{"kind": "finetune", "status": "failed", "error": "x"}], "f", 1, 1)
    put(tmp_path, "stages", [{"kind": "finetune", "status": "done"}], "f", 2, 0)
    assert cft_ray.open(tmp_path).stages().select("attempt", "status").collect().rows() == [(1, "failed"), (2, "done")]


def test_a_resumed_training_replaces_the_steps_that_it_sends_again(tmp_path: Path) -> None:
    put(tmp_path, "steps", [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)], "f", 1, 1)
    put(tmp_path, "steps", [{"step": step, "loss": 2.0} for step in (3, 4, 5)], "f", 2, 3)
    rows = cft_ray.open(tmp_path).steps().select("step", "loss").collect().rows()
    assert rows == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_the_last_run_of_a_cell_counts(tmp_path: Path) -> None:
    plan_cells(tmp_path, cell(phase1="old"), cell("other", phase1="kept"))
    plan_cells(tmp_path, cell(phase1="new"))
    assert sorted(cft_ray.open(tmp_path).cells().select("cell", "stage").collect().rows()) == [
        ("m/a→b/none/0", "new"),
        ("other", "kept"),
    ]


def test_cell_rows_take_roles_apart() -> None:
    stage = Stage(EvaluateSpec(benchmark="x", ability="TA", tasks={}, metric="acc", generation=GenerationSettings()))
    roles = {"base": "f0", "phase2:TA:x": stage.fingerprint, "replay": "f1"}
    planned = PlannedCell("c", "m", "a", "b", "GR_10", 1, {"training.learning_rate": 1e-5, "a": 1}, roles)
    rows = cell_rows(Plan("grid", {}, (planned,)))
    assert [(row["role"], row["phase"], row["ability"], row["benchmark"]) for row in rows] == [
        ("base", "base", None, None),
        ("phase2:TA:x", "phase2", "TA", "x"),
        ("replay", None, None, None),
    ]
    assert {row["settings"] for row in rows} == {'{"a": 1, "training.learning_rate": 1e-05}'}
    assert table_of("cells", rows).num_rows == 3


def test_empty_storage_gives_empty_frames_with_the_right_columns(tmp_path: Path) -> None:
    results = cft_ray.open(tmp_path)
    for name, schema in SCHEMAS.items():
        frame = getattr(results, name)().collect()
        assert (frame.height, frame.columns) == (0, schema.names)
    assert results.results().collect().height == 0
    assert results.summary().collect().height == 0


def test_missing_storage(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        cft_ray.open(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError):
        cft_ray.open(tmp_path / "file")
    with pytest.raises(UserError):
        cft_ray.open("ftp://host/x")


def test_bad_files_do_not_hide_good_ones(tmp_path: Path) -> None:
    put(tmp_path, "steps", [{"step": 1, "loss": 1.0}], "f", 1, 1)
    folder = tmp_path / "tables" / "steps"
    whole = next(folder.glob("*.parquet")).read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "text.parquet").write_text("step,loss\n1,2\n")
    (folder / "damaged.parquet").write_bytes(
        bytes(byte ^ 0x55 if 4 <= i < len(whole) - 8 else byte for i, byte in enumerate(whole))
    )
    pl.DataFrame({"a": [1]}).write_parquet(folder / "foreign.parquet")
    wrong = {"fingerprint": ["g"], "attempt": [1], "sequence": [1], "step": ["one"], "loss": [1.0]}
    pl.DataFrame(wrong).write_parquet(folder / "wrong-type.parquet")
    pl.DataFrame(wrong | {"fingerprint": [None], "step": [1]}).write_parquet(folder / "null-key.parquet")
    (folder / "folder.parquet").mkdir()
    (folder / ".0-temporary.parquet").write_bytes(whole[:20])
    (folder / "notes.txt").write_text("not a table")
    done(tmp_path, "f")
    with pytest.warns(DamagedFileWarning) as caught:
        rows = cft_ray.open(tmp_path).steps().collect()
    assert rows["step"].to_list() == [1]
    assert len({str(warning.message) for warning in caught}) == 7
    assert cft_ray.open(tmp_path).stages().collect().height == 1


def test_frames_follow_the_files(tmp_path: Path) -> None:
    put(tmp_path, "steps", [{"step": 1, "loss": 1.0}], "f", 1, 1)
    frame = cft_ray.open(tmp_path).steps()
    put(tmp_path, "steps", [{"step": 2, "loss": 1.0}], "f", 1, 2)
    TableStore(Storage(tmp_path), "steps").compact()  # takes away the files that were there when the frame was made
    assert frame.filter(pl.col("step") > 1).select("loss", "step").collect().rows() == [(1.0, 2)]
    assert isinstance(cft_ray.open(tmp_path), Results)


def test_reading_imports_neither_ray_nor_torch(tmp_path: Path) -> None:
    code = f"""import sys, cft_ray
cft_ray.open({str(tmp_path)!r}).summary().collect()
print(sorted({{'ray', 'torch'}} & set(sys.modules)))"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_mpd_is_scaled_within_its_comparison(tmp_path: Path) -> None:
    def drift(name: str, mpd: float) -> str:
        values = {"mpd": mpd, "rms": mpd / 10, "l2": mpd * 10}
        rows = [{"measure": measure, "left": "l", "right": "r", "value": value} for measure, value in values.items()]
        rows += [{"measure": "mpd", "left": "l", "right": "r", "layer": 0, "projection": "q", "value": 99.0}]
        put(tmp_path, "similarity", rows, name)
        done(tmp_path, name)
        return name

    near, far, along = drift("near", 1.0), drift("far", 4.0), drift("along", 7.0)
    nothing = drift("nothing", 0.0)
    roles = {
        "phase1": "x",
        "insight:des": "y",
        "insight:drift:datasets": near,
        "insight:drift:datasets:a,c": far,
        "insight:drift:base-phase1": along,
        "insight:drift:base-phase2": nothing,
    }
    plan_cells(tmp_path, cell(**roles))
    rows = {row["role"]: row for row in cft_ray.open(tmp_path).mpd().collect().to_dicts()}
    assert set(rows) == {role for role in roles if role.startswith("insight:drift")}
    assert [rows[role]["mpd_scaled"] for role in list(roles)[2:]] == [0.25, 1.0, 1.0, None]
    assert rows["insight:drift:datasets"]["comparison"] == rows["insight:drift:datasets:a,c"]["comparison"] == "datasets"
    found = rows["insight:drift:datasets"]
    assert (found["mpd"], found["rms"], found["l2"], found["left"], found["right"]) == (1.0, 0.1, 10.0, "l", "r")


def two_plans(folder: Path, one: PlannedCell, other: PlannedCell) -> None:
    for grid, planned in (("grid", one), ("other", other)):
        plan = Plan(grid, {}, (planned,))
        key = cells_key(plan)
        put(folder, "cells", cell_rows(plan), key["fingerprint"], key["attempt"])


def drifted(folder: Path, name: str, mpd: float) -> str:
    put(folder, "similarity", [{"measure": "mpd", "left": "l", "right": "r", "value": mpd}], name)
    done(folder, name)
    return name


def test_only_the_shown_metric_counts(tmp_path: Path) -> None:
    """A second metric of the same evaluation neither makes rows nor enters a mean."""
    stage = evaluated(tmp_path, "s", score(0.9, shown=False), score(0.2), score(0.7, "de", shown=False), score(0.4, "de"))
    plan_cells(tmp_path, cell(phase2__TA__b=stage))
    found = cft_ray.open(tmp_path)
    rows = [(row["metric"], row["language"], row["phase2_score"]) for row in found.results().collect().to_dicts()]
    assert sorted(rows) == [("acc", "de", 0.4), ("acc", "en", 0.2), ("acc", "mean", pytest.approx(0.3))]
    (row,) = found.summary().collect().to_dicts()
    assert row["ta_phase2"] == pytest.approx(0.3)


def test_a_filter_on_a_frame_is_obeyed(tmp_path: Path) -> None:
    """polars hands it down to the reader."""
    for fingerprint in ("a", "b"):
        put(tmp_path, "steps", [{"step": step, "loss": 1.0} for step in range(3)], fingerprint)
    steps = cft_ray.open(tmp_path)._table("steps")
    assert steps.filter(pl.col("fingerprint") == "a").collect()["fingerprint"].to_list() == ["a"] * 3
    assert cft_ray.open(tmp_path).steps().filter(pl.col("fingerprint") == "b").collect().height == 3
    assert steps.filter(pl.col("step") == 1).select("fingerprint").collect()["fingerprint"].sort().to_list() == ["a", "b"]


def test_two_grids_with_equal_cell_names_stay_apart(tmp_path: Path) -> None:
    low = evaluated(tmp_path, "low", score(0.1))
    high = evaluated(tmp_path, "high", score(0.9))
    roles = {"phase2__TA__b": low}, {"phase2__TA__b": high, "phase1__TA__b": low}
    two_plans(tmp_path, *(cell(**each) for each in roles))
    found = cft_ray.open(tmp_path)
    assert found.cells().collect().height == 3
    means = found.results().filter(pl.col("language") == "mean").collect().to_dicts()
    assert {row["grid"]: row["phase2_score"] for row in means} == {"grid": 0.1, "other": 0.9} and len(means) == 2
    summary = {row["grid"]: row for row in found.summary().collect().to_dicts()}
    assert len(summary) == found.summary().collect().height == 2
    assert {grid: (row["scores_due"], row["scores_there"]) for grid, row in summary.items()} == {"grid": (1, 1), "other": (2, 2)}


def test_mpd_is_scaled_by_the_largest_of_its_own_grid_and_model(tmp_path: Path) -> None:
    role = "insight__drift__base-phase1"
    small, large = drifted(tmp_path, "small", 0.05), drifted(tmp_path, "large", 8.0)
    middle = drifted(tmp_path, "middle", 0.2)
    two_plans(tmp_path, cell(**{role: small}), cell(**{role: large}))
    rows = {row["grid"]: row["mpd_scaled"] for row in cft_ray.open(tmp_path).mpd().collect().to_dicts()}
    assert rows == {"grid": 1.0, "other": 1.0}
    named = {model: f"{model}/a→b/none/0" for model in ("m", "n")}
    cells = [PlannedCell(named[model], model, "a", "b", "none", 0, {}, {role.replace("__", ":"): stage})
             for model, stage in (("m", small), ("n", middle))]  # fmt: skip
    plan_cells(tmp_path / "models", *cells)
    for name, mpd in (("small", 0.05), ("middle", 0.2)):
        drifted(tmp_path / "models", name, mpd)
    models = cft_ray.open(tmp_path / "models").mpd().collect().to_dicts()
    assert {row["model"]: row["mpd_scaled"] for row in models} == {"m": 1.0, "n": 1.0}


def test_mpd_below_one_is_scaled_as_well(tmp_path: Path) -> None:
    roles = {
        "insight__drift__datasets": drifted(tmp_path, "x", 0.2),
        "insight__drift__datasets__a,c": drifted(tmp_path, "y", 0.05),
    }
    plan_cells(tmp_path, cell(**roles))
    rows = sorted(row["mpd_scaled"] for row in cft_ray.open(tmp_path).mpd().collect().to_dicts())
    assert rows == pytest.approx([0.25, 1.0])
