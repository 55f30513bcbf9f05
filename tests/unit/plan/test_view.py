"""The plan as JSON and in the terminal."""

import io
import json

from made import Made
from rich.console import Console

from cft_ray.artifacts.store import ArtifactStore
from cft_ray.grid.schema import load_grid
from cft_ray.plan.build import build
from cft_ray.plan.show import show
from cft_ray.plan.view import as_json, view
from cft_ray.storage.root import Storage


def test_json_holds_everything_and_counts_add_up(repository):
    grid = load_grid(repository / "grids/full.yaml", ["exclude=[{phase2: mopenorca}]"])
    plan = build(grid)
    existing = [
        Made("dataset", 1, fingerprint, stage.spec.identity(), dict(stage.inputs))
        for fingerprint, stage in plan.stages.items()
        if stage.kind == "dataset"
    ]
    told = json.loads(json.dumps(as_json(plan, grid, existing)))
    assert len(told["cells"]) == 28 and len(told["stages"]) == len(plan.stages)
    kinds = {kind["kind"]: kind for kind in told["kinds"]}
    assert (kinds["dataset"]["unique"], kinds["dataset"]["cached"]) == (2, 2)
    # One cell alone: phase 1 (Alpaca's 14 cells have one to train) and phase 2.
    assert (kinds["finetune"]["alone"], kinds["finetune"]["unique"]) == (14 * 2 + 14, 2 + 28)
    assert kinds["evaluate"]["alone"] == 28 * 3 * 7
    assert {stage["status"] for stage in told["stages"] if stage["kind"] == "dataset"} == {"cached"}
    phase1 = next(stage for stage in told["stages"] if stage["label"] == "mistral-7b alpaca")
    assert phase1["cells"] == 7 and phase1["estimate"]["device_hours"] > 0


def test_warnings_name_what_is_missing_and_what_does_not_fit(repository):
    tight = ["resources.finetune.workers=1", "training.gradient_checkpointing=false"]
    grid = load_grid(repository / "grids/full.yaml", tight)
    warnings = view(build(grid), grid, []).warnings
    assert any("mopenorca" in warning for warning in warnings)
    assert any("which has 80 GB" in warning for warning in warnings)


def test_storage_says_what_is_cached_and_is_not_touched(repository, tmp_path):
    grid = load_grid(repository / "grids/smoke.yaml", [f"storage.uri={tmp_path}/runs"])
    plan = build(grid)
    assert {reason.status for reason in view(plan, grid).reasons.values()} == {"new"}
    assert not (tmp_path / "runs").exists()
    stage = next(iter(plan.stages.values()))
    store = ArtifactStore(Storage(tmp_path / "runs"))
    folder = store.stage_folder(stage.kind, stage.fingerprint, 1)
    (folder / "rows.parquet").write_bytes(b"x")
    store.publish(store.finished(stage, folder, outputs={}, attempt=1, seconds=1.0, versions={}))
    cached = [fingerprint for fingerprint, reason in view(plan, grid).reasons.items() if reason.status == "cached"]
    assert cached == [stage.fingerprint]


def test_terminal_shows_every_grid(repository):
    for path in sorted((repository / "grids").glob("*.yaml")):
        grid = load_grid(path, ["evaluation.data={}"])  # the real items are not on every machine
        plan = build(grid)
        text = io.StringIO()
        show(plan, grid, Console(file=text, width=200), [])
        assert f"{len(plan.cells)} cells" in text.getvalue() and f"{len(plan.stages)} unique stages" in text.getvalue()
