"""The command line as a user runs it, without a run."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

CFT_RAY = Path(sys.executable).parent / "cft-ray"


def cft_ray(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(CFT_RAY), *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after `cft-ray init`."""
    folder = tmp_path_factory.mktemp("init")
    done = cft_ray("init", ".", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_init_gives_a_grid_that_plans_and_a_cluster(started):
    assert {path.name for path in started.iterdir()} == {"grid.yaml", "cluster.yaml"}
    planned = cft_ray("plan", "grid.yaml", "--json", cwd=started)
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert len(plan["cells"]) == 4
    mounts = yaml.safe_load((started / "cluster.yaml").read_text())["file_mounts"]
    assert (Path(mounts["/home/ubuntu/cft-ray"]) / "requirements" / "gpu.lock").exists()


def test_init_overwrites_nothing(started):
    before = (started / "grid.yaml").read_text()
    (started / "cluster.yaml").rename(started / "other.yaml")
    again = cft_ray("init", ".", cwd=started)
    (started / "other.yaml").rename(started / "cluster.yaml")
    assert again.returncode == 2 and "grid.yaml" in again.stderr and "Traceback" not in again.stderr
    assert (started / "grid.yaml").read_text() == before


def test_schema_accepts_the_grids_and_refuses_a_misspelt_key(repository):
    printed = cft_ray("schema", cwd=repository)
    assert printed.returncode == 0
    schema = json.loads(printed.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    grid = yaml.safe_load((repository / "grids" / "smoke.yaml").read_text())
    jsonschema.validate(grid, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(grid | {"seed": 1}, schema)


@pytest.mark.parametrize(("grid", "cells"), [("smoke", 7), ("toy", 56), ("full", 56)])
def test_plan_of_the_grids_that_come_along(repository, grid, cells):
    planned = cft_ray("plan", f"grids/{grid}.yaml", "--json", cwd=repository)
    assert planned.returncode == 0, planned.stderr
    assert len(json.loads(planned.stdout)["cells"]) == cells


def test_plan_with_a_swept_setting_has_a_cell_for_each_value(repository):
    sweep = ("--set", "training.phase2.learning_rate=[1e-4, 5e-4]")
    planned = cft_ray("plan", "grids/smoke.yaml", "--json", *sweep, cwd=repository)
    strategies = [cell["strategy"] for cell in json.loads(planned.stdout)["cells"]]
    assert strategies.count("none") == 4
    assert strategies.count("LoRA") == 1, "the grid gives LoRA a learning rate of its own, which the sweep leaves alone"


def test_status_and_results_before_a_run(started):
    for command in (("status", "grid.yaml"), ("results", "grid.yaml"), ("results",)):
        done = cft_ray(*command, cwd=started)
        assert done.returncode == 2 and "fix:" in done.stderr and "Traceback" not in done.stderr


def test_doctor_finds_what_is_broken_and_only_that(started):
    done = cft_ray("doctor", "grid.yaml", "--set", "storage.uri=grid.yaml/below", "--json", cwd=started)
    checks = json.loads(done.stdout)
    assert done.returncode == 1
    assert [check["area"] for check in checks if check["state"] == "broken"] == ["storage"], checks
    assert {"python", "packages", "vllm", "imports", "machine", "gpus", "hub"} <= {check["area"] for check in checks}


def test_help_names_every_command_and_the_exit_codes(repository):
    shown = cft_ray("--help", cwd=repository).stdout
    assert all(name in shown for name in ("init", "plan", "run", "status", "results", "schema", "doctor", "130"))
