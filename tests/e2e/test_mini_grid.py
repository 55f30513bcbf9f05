"""One small grid through everything for real: ZeRO-3 training, vLLM replay, lm-evaluation-harness, tables, results.

The models are too small and trained too briefly to be good at anything: what is checked is that every part is there
and that the numbers agree with each other, not how high they are.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml
from faults import cuts, delays, no_copies, storm
from minigrid import GRID

import cft_ray
from cft_ray.grid.schema import load_grid
from cft_ray.plan.build import build

CFT_RAY = Path(sys.executable).parent / "cft-ray"


def cft_ray_(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CFT_RAY_CACHE": str(cwd / "cache")}
    environment.pop("RAY_ADDRESS", None)
    command = [str(CFT_RAY), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=580, check=False)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The grid's folder after `cft-ray run`, and what that printed."""
    folder = tmp_path_factory.mktemp("mini")
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    done = cft_ray_("run", "grid.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr[-8000:]
    return folder, done


def manifests(folder: Path) -> dict[str, tuple[int, str]]:
    """Artifact -> (time of its manifest, its kind)."""
    found = (folder / "storage" / "artifacts").glob("*/*/manifest.json")
    return {path.parent.name: (path.stat().st_mtime_ns, path.parent.parent.name) for path in found}


pytestmark = pytest.mark.timeout(900)


def test_a_logger_has_the_curve_of_every_training(ran):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = ran
    steps = cft_ray.open(folder / "storage").steps().collect()
    for fingerprint in steps["fingerprint"].unique():
        events = EventAccumulator(str(folder / "curves" / fingerprint))
        events.Reload()
        losses = {event.step: event.value for event in events.Scalars("train/loss")}
        own = steps.filter(pl.col("fingerprint") == fingerprint).select("step", "loss").rows()
        assert losses == pytest.approx(dict(own), rel=1e-6)


def test_every_planned_stage_has_its_artifact(ran):
    folder, _ = ran
    planned = build(load_grid(folder / "grid.yaml", [f"storage.uri={folder / 'storage'}"]))
    assert set(manifests(folder)) == set(planned.stages)
    stages = cft_ray.open(folder / "storage").stages().collect()
    assert set(stages["fingerprint"]) == set(planned.stages) and set(stages["status"]) == {"done"}


def test_the_results_agree_with_the_samples_they_come_from(ran):
    folder, _ = ran
    results = cft_ray.open(folder / "storage")
    rows = results.results().collect()
    assert set(rows["strategy"]) == {"none", "GR_10"} and set(rows["ability"]) == {"TA", "LA"}
    assert rows.select(pl.col("phase1_score", "phase2_score", "change").null_count()).row(0) == (0, 0, 0)
    assert rows.select(((pl.col("phase2_score") - pl.col("phase1_score") - pl.col("change")).abs() < 1e-12).all()).item()
    items = results.samples().group_by("fingerprint", "task", "language").len().collect()
    assert set(items["len"]) == {20}


def test_training_is_recorded_step_by_step(ran):
    folder, _ = ran
    steps = cft_ray.open(folder / "storage").steps().collect()
    assert steps.group_by("fingerprint").agg(pl.col("step").n_unique())["step"].to_list() == [20] * 4
    assert steps["loss"].is_finite().all() and (steps["tokens"] > 0).all()


def test_replay_is_a_tenth_of_the_phase_2_data(ran):
    folder, _ = ran
    (replay,) = (folder / "storage" / "artifacts" / "replay").glob("*/*/rows.parquet")
    assert pl.read_parquet(replay).height == 20


def test_results_shows_what_run_showed(ran):
    folder, run = ran
    shown = cft_ray_("results", "grid.yaml", cwd=folder)
    assert shown.returncode == 0 and shown.stdout == run.stdout
    assert "none" in shown.stdout and "GR_10" in shown.stdout


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_results_as_files(ran, form, tmp_path):
    folder, _ = ran
    target = tmp_path / f"results.{form}"
    done = cft_ray_("results", "--storage", "storage", "--format", form, "--output", str(target), cwd=folder)
    assert done.returncode == 0, done.stderr
    read = {"json": pl.read_json, "csv": pl.read_csv, "parquet": pl.read_parquet}[form](target)
    expected = cft_ray.open(folder / "storage").results().collect()
    assert read.height == expected.height and read.columns == expected.columns


def test_status_says_that_all_is_there(ran):
    folder, _ = ran
    done = cft_ray_("status", "grid.yaml", "--json", cwd=folder)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and {stage["state"] for stage in found["stages"]} == {"done"}
    assert found["cells"] == found["cells_complete"] == 2


def test_again_does_only_what_is_missing_or_damaged(ran):
    folder, run = ran
    before = manifests(folder)
    (rows, *_) = sorted((folder / "storage" / "artifacts" / "dataset").glob("*/*/rows.parquet"))
    rows.write_bytes(rows.read_bytes()[:-100])
    again = cft_ray_("run", "grid.yaml", cwd=folder)
    assert again.returncode == 0, again.stderr[-8000:]
    assert again.stdout == run.stdout
    after = manifests(folder)
    assert {name for name in before if after[name] != before[name]} == {rows.parent.parent.name}
    attempts = cft_ray.open(folder / "storage").stages().collect()
    assert attempts.group_by("fingerprint").len().filter(pl.col("len") > 1)["fingerprint"].to_list() == [rows.parent.parent.name]


def test_through_a_bucket_that_misbehaves_the_scores_are_those_of_the_folder(ran, s3, tmp_path):
    """Half of all requests are refused for a while, connections are cut, requests come late, no copy is allowed."""
    grid = {key: value for key, value in GRID.items() if key != "loggers"}
    uri = f"s3://{s3.bucket()}/mini"
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid | {"strategies": ["none"], "storage": {"uri": uri}}))
    with s3.behaving(no_copies, storm(10.0), cuts(0.03), delays(1.0, 0.02)):
        done = cft_ray_("run", "grid.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-8000:]
    folder = cft_ray.open(ran[0] / "storage").results().filter(pl.col("strategy") == "none").collect()
    bucket = cft_ray.open(uri).results().collect()
    assert folder.height and bucket.equals(folder)
    assert not any(asked.copy for asked in s3.asked) and any(asked.method == "PUT" for asked in s3.asked)
