"""A model that cannot be trained rightly: one whole message, nothing tried again, nothing left that looks finished."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tinymodels import weights_of

from cft_ray.grid.settings import ScratchModel

CFT_RAY = Path(sys.executable).parent / "cft-ray"
SHAPE = ScratchModel(hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=64, max_positions=128)
GRID = {
    "name": "refused",
    "storage": {"uri": "storage"},
    "models": {"tiny": {"base": {"path": "model"}}},
    "datasets": {
        "alpaca": {"toy": "alpaca", "languages": ["en"], "rows": 40},
        "multialpaca": {"toy": "multialpaca", "languages": ["de"], "rows": 40, "english": "alpaca"},
    },
    "pairs": [{"phase1": "alpaca", "phase2": "multialpaca"}],
    "strategies": ["none"],
    "template": {"name": "toy"},
    "training": {"steps": 2, "batch_size": 4, "precision": "fp32"},
    "evaluation": {"limit": 2, "evaluate_base": False, "backend": "hf", "benchmarks": ["toy_letters"]},
}


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CFT_RAY_CACHE": str(folder / "cache"), "XDG_CACHE_HOME": str(folder / "home")}
    environment.pop("RAY_ADDRESS", None)
    called = [str(CFT_RAY), *arguments]
    return subprocess.run(called, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from cft_ray.training.model import create

    create(SHAPE, 0, tmp_path / "model")
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    return tmp_path


def test_what_only_the_weights_show_is_refused_before_the_first_step(folder: Path) -> None:
    """The plan sees no weights; the training does, says which tensor of which file, and is not tried again."""
    with weights_of(folder / "model") as weights:
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    planned = command(folder, "plan", "grid.yaml")
    assert planned.returncode == 0 and "128 tokens" in " ".join(planned.stdout.split())

    failed = command(folder, "run", "grid.yaml")
    assert failed.returncode == 1, failed.stderr
    whole = " ".join(failed.stderr.split())
    assert "model.safetensors: tensor model.layers.1.mlp.up_proj.weight holds NaN" in whole
    assert "Traceback" not in failed.stderr
    told = command(folder, "status", "grid.yaml", "--json")
    (training,) = [each for each in json.loads(told.stdout)["stages"] if each["kind"] == "finetune" and each["state"] == "failed"]
    assert training["attempts"] == 1
    assert "holds NaN" in training["error"] and "fix: fetch or train the model again" in training["error"]
    assert not list(folder.glob("storage/artifacts/finetune/*/manifest.json"))


def test_what_the_files_show_is_refused_by_plan_and_run_alike(folder: Path) -> None:
    config = folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 200}))
    for verb in ("plan", "run"):
        refused = command(folder, verb, "grid.yaml")
        assert refused.returncode == 2 and refused.stdout == ""
        assert "models.tiny.base.path" in refused.stderr and "beyond the model's embedding of 200 rows" in refused.stderr
    assert not (folder / "storage").exists()
