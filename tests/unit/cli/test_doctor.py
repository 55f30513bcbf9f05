"""The parts of `doctor` that need no large library."""

from pathlib import Path

import pytest

from cft_ray import doctor
from cft_ray.grid.schema import Grid, load_grid


@pytest.fixture
def smoke(repository: Path) -> Grid:
    return load_grid(repository / "grids" / "smoke.yaml")


def test_storage_is_tested_without_making_its_folder(tmp_path):
    checks = list(doctor._storage(str(tmp_path / "not" / "yet")))
    assert [check.state for check in checks] != ["broken"]
    assert not list(tmp_path.iterdir())


def test_storage_below_a_file_is_broken(tmp_path):
    (tmp_path / "file").write_text("")
    assert [check.state for check in doctor._storage(str(tmp_path / "file" / "below"))] == ["broken"]


def test_hub_names_are_those_of_the_grid(repository):
    names = doctor._hub_names(load_grid(repository / "grids" / "full.yaml"))
    assert ("model", "mistralai/Mistral-7B-v0.1") in names and ("dataset", "tatsu-lab/alpaca") in names
    assert len(set(names)) == len(names)


def test_a_closed_port_is_offline(monkeypatch, smoke):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert [(check.area, check.state) for check in doctor._hub(smoke)] == [("hub", "warning")]


def test_a_token_is_never_shown(monkeypatch, smoke):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert all("hf_secret" not in f"{check.found}{check.fix}" for check in doctor._hub(smoke))


def test_what_a_grid_asks_for_beyond_this_machine_is_a_warning(smoke):
    greedy = smoke.resources["finetune"].model_copy(update={"cpus": 10_000.0, "gpus": 64.0})
    grid = smoke.model_copy(update={"resources": {"finetune": greedy}})
    found = list(doctor._demand(grid))
    assert found and {check.state for check in found} == {"warning"}
    assert not list(doctor._demand(smoke))


def test_installed_versions_are_those_that_the_package_asks_for():
    assert {check.state for check in doctor._versions()} == {"ok"}
