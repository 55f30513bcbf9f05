"""The first minute: which Python the Makefile takes, what it says where there is none, and when it has nothing to do."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

if any(shutil.which(tool) is None for tool in ("make", "sh", "sha256sum")):
    pytest.skip("needs make and a POSIX shell", allow_module_level=True)

TOOLS = ("sh", "cat", "dirname", "grep", "mktemp", "rm")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder for PATH: the system's tools, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    return folder


def interpreter(path: Path, version: tuple[int, int]) -> Path:
    """A Python of some version: the one that runs this test, with another number."""
    pretended = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 0)"
    path.write_text(f'#!/bin/sh\ntest "$1" = -c || exit 1\nexec {sys.executable} -c "{pretended}\n$2"\n')
    path.chmod(0o755)
    return path


def choose(repository: Path, machine: Path, *named: str) -> subprocess.CompletedProcess[str]:
    command = [str(machine / "sh"), str(repository / "requirements" / "python.sh"), *named]
    return subprocess.run(command, env={"PATH": str(machine)}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({"python3": (3, 11)}, "python3"),
        ({"python3": (3, 12)}, "python3"),
        ({"python3": (3, 13)}, "python3"),
        ({"python3": (3, 10), "python3.12": (3, 12)}, "python3.12"),
        ({"python3": (3, 14), "python3.13": (3, 13), "python3.11": (3, 11)}, "python3.11"),
    ],
)
def test_the_first_supported_python_is_taken(repository, machine, there, chosen):
    for name, version in there.items():
        interpreter(machine / name, version)
    done = choose(repository, machine)
    assert (done.returncode, done.stdout) == (0, f"{machine / chosen}\n"), done.stderr


def test_a_shim_that_leads_nowhere_is_passed_over(repository, machine):
    shim = machine / "python3.11"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    interpreter(machine / "python3", (3, 12))
    assert choose(repository, machine).stdout == f"{machine / 'python3'}\n"


@pytest.mark.parametrize("version", [None, (3, 9), (3, 10), (3, 14)])
def test_without_one_there_is_one_message_at_once(repository, machine, version):
    if version is not None:
        interpreter(machine / "python3", version)
    start = time.monotonic()
    done = choose(repository, machine)
    assert done.returncode == 1 and done.stdout == "" and time.monotonic() - start < 30
    assert "3.11, 3.12 or 3.13" in done.stderr and "fix:" in done.stderr and "Traceback" not in done.stderr
    assert version is None or f"python3 is {version[0]}.{version[1]}.0" in done.stderr


def test_uv_brings_one(repository, machine):
    interpreter(machine / "python3", (3, 10))
    brought = machine.parent / "brought"
    uv = machine / "uv"
    uv.write_text(f'#!/bin/sh\ncase "$2" in install) echo done > {brought};; find) echo {brought};; esac\n')
    uv.chmod(0o755)
    done = choose(repository, machine)
    assert (done.returncode, done.stdout) == (0, f"{brought}\n") and brought.exists()


def test_one_that_is_named_is_taken_or_refused(repository, machine):
    named = interpreter(machine / "mine", (3, 12))
    interpreter(machine / "python3.11", (3, 11))
    assert choose(repository, machine, str(named)).stdout == f"{named}\n"
    refused = choose(repository, machine, str(interpreter(machine / "old", (3, 10))))
    assert refused.returncode == 1 and "is 3.10.0" in refused.stderr


def test_set_up_is_renewed_by_what_it_depends_on_and_by_nothing_else(repository, tmp_path):
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements/cpu.lock", "requirements/gpu.lock"):
        shutil.copy(repository / name, tmp_path / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def make(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert make("-q", "setup").returncode == 1
    (mark,) = [line.split()[1] for line in make("-n", "setup").stdout.splitlines() if line.startswith("touch ")]
    (tmp_path / mark).parent.mkdir()
    (tmp_path / mark).touch()
    assert make("-q", "setup").returncode == 0
    project = tmp_path / "pyproject.toml"
    for path in (project, tmp_path / "requirements" / "cpu.lock"):  # as a checkout of another branch and back leaves them
        os.utime(path, (2e9, 2e9))
    project.write_text(project.read_text().replace("line-length = 130", "line-length = 131"))
    assert make("-q", "setup").returncode == 0
    assert make("-q", "setup", "DEVICE=gpu").returncode == 1
    before = project.read_text()
    project.write_text(before.replace('"typer>=0.16"', '"typer>=0.17"'))
    assert project.read_text() != before and make("-q", "setup").returncode == 1
    project.write_text(before)
    assert make("-q", "setup").returncode == 0
    lock = tmp_path / "requirements" / "cpu.lock"
    lock.write_text(lock.read_text().replace("ray==2.60.0", "ray==2.60.1"))
    assert make("-q", "setup").returncode == 1
