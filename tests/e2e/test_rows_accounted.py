"""From a grid to `status` and `results`: every row is used, left out for a reason that is shown, or the run is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

import cft_ray

CFT_RAY = Path(sys.executable).parent / "cft-ray"
SCRATCH = {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 128, "max_positions": 256}
GRID = {
    "name": "rows",
    "storage": {"uri": "storage"},
    "models": {"tiny": {"base": {"scratch": SCRATCH, "train": {"data": "en", "training": {"steps": 2}}}}},
    "datasets": {
        "en": {"files": "run [v2]/en*.jsonl", "languages": ["en"]},
        "de": {
            "files": "de.csv",
            "columns": {"language": "language", "instruction": "instruction", "output": "output"},
            "languages": ["de"],
        },
    },
    "pairs": [{"phase1": "en", "phase2": "de"}],
    "strategies": ["none"],
    "template": {"name": "toy"},
    "training": {"learning_rate": 1e-3, "steps": 2, "batch_size": 4, "max_length": 60, "precision": "fp32", "warmup_steps": 0},
    "evaluation": {"limit": 2, "evaluate_base": False, "backend": "hf", "benchmarks": ["toy_letters"]},
}


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CFT_RAY_CACHE": str(folder / "cache"), "XDG_CACHE_HOME": str(folder / "home")}
    environment.pop("RAY_ADDRESS", None)
    called = [str(CFT_RAY), *arguments]
    return subprocess.run(called, cwd=folder, env=environment, capture_output=True, text=True, timeout=580, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run [v2]").mkdir()
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    english = "".join(json.dumps({"conversations": turns}) + "\n" for _ in range(8))
    (tmp_path / "run [v2]" / "en-1.jsonl").write_text("\ufeff" + english, encoding="utf-8")
    rows = [("DE", "kurz")] * 4 + [("de", "kurz")] * 10 + [("de", "viel zu lang " * 10)] * 6
    lines = [f"{language},Frage {number},{answer}" for number, (language, answer) in enumerate(rows)]
    (tmp_path / "de.csv").write_text("\n".join(["language,instruction,output", *lines]))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    return tmp_path


def test_rows_are_accounted_for_from_the_grid_to_the_results(folder: Path) -> None:
    for verb in ("plan", "run"):
        refused = command(folder, verb, "grid.yaml")
        assert refused.returncode == 2 and not (folder / "storage").exists()
        for words in ("4 of 20 rows of data set de", "20.0 %", "'DE' 4 times", "datasets.de.allow_left_out=0.2"):
            assert words in refused.stderr, (verb, words)

    allowed = ("--set", "datasets.de.allow_left_out=0.2")
    planned = command(folder, "plan", "grid.yaml", *allowed, "--json")
    shown = {stage["label"]: stage["rows"] for stage in json.loads(planned.stdout)["stages"] if stage["rows"]}
    assert (shown["de"]["came"], shown["de"]["used"]) == (20, 16) and shown["en"]["used"] == 8

    failed = command(folder, "run", "grid.yaml", *allowed)  # only the encoding knows that 6 of 16 are too long
    assert failed.returncode == 1
    told = command(folder, "status", "grid.yaml", *allowed)
    assert "6 of 16 rows" in " ".join(told.stdout.split()) and "datasets.de.allow_left_out=0.38" in " ".join(told.stdout.split())

    done = command(folder, "run", "grid.yaml", "--set", "datasets.de.allow_left_out=0.4")
    assert done.returncode == 0, done.stderr
    assert "16 of 20 rows used; 4 left out" in done.stderr and "6 too long (37.5 %)" in done.stderr
    rows = cft_ray.open(folder / "storage").rows().collect()
    for stage in rows.partition_by("fingerprint"):
        count = dict(stage.group_by("fate").agg(pl.col("count").sum()).iter_rows())
        assert count["came"] == count["used"] + count.get("left_out", 0) + count.get("set_aside", 0)
    found = json.loads(command(folder, "status", "grid.yaml", "--json").stdout)
    assert {stage["label"]: stage["rows"]["left_out"] for stage in found["stages"] if stage["label"] in ("en", "de")} == {
        "en": {},
        "de": {"language_spelled_otherwise": 4},
    }
    assert "6 too long" in " ".join(command(folder, "results", "grid.yaml").stdout.split())
