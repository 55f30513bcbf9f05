"""The command line where a machine lacks something: one message and exit code 2 within seconds, or it works all the same."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cft_ray import cli

ROOT = Path(cli.__file__).parent.parent
COMMANDS = ("plan", "status", "run", "results", "figures")
DEAD = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
CODE = "from cft_ray.cli import entry; entry()"


def cft_ray(*arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"CFT_RAY_CACHE": str(cwd / "cache"), "PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-c", CODE, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one message that holds these words."""
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and done.stderr.count("cft-ray: ") == 1 and "fix:" in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "grids" / "smoke.yaml", tmp_path / "grid.yaml")
    return tmp_path


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "nonsense", "127.0.0.1:1", "no.such.host.invalid:6379"])
@pytest.mark.parametrize("given", ["variable", "option"])
def test_an_address_without_a_cluster_is_named_in_seconds(folder, address, given):
    start = time.monotonic()
    if given == "variable":
        refused(
            cft_ray("run", "grid.yaml", cwd=folder, RAY_ADDRESS=address), f"environment variable RAY_ADDRESS={address}", "unset"
        )
    else:
        refused(cft_ray("run", "grid.yaml", "--address", address, cwd=folder), address)
    assert time.monotonic() - start < 60  # importing Ray included, on a machine that does other things


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("uri", ["s3:/bucket/run", "s3://", "s3://bucket//run", "dbfs:/run", "~no_such_user/run"])
def test_a_misspelt_storage_is_refused_by_every_command(folder, command, uri):
    if uri != "s3:/bucket/run" and command in ("results", "figures"):
        pytest.skip("the same look as status, which is tried")
    refused(cft_ray(command, "grid.yaml", "--set", f"storage.uri={uri}", cwd=folder), uri)
    assert not (folder / "s3:").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dead_endpoint_is_one_message(folder, command):
    refused(cft_ray(command, "grid.yaml", "--set", "storage.uri=s3://bucket/run", cwd=folder, **DEAD), "s3://bucket/run")


def test_output_that_is_not_utf8_is_written_in_its_characters(folder):
    done = cft_ray("plan", "grid.yaml", cwd=folder, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.isascii() and "mistral-toy" in done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [("plan", "grid.yaml"), ("plan", "grid.yaml", "--json"), ("schema",)])
def test_a_full_disk_behind_standard_output_is_one_line(folder, arguments):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    quoted = " ".join(arguments)
    script = f'{sys.executable} -c "{CODE}" {quoted} > /dev/full'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    refused(done, "standard output", "No space left")


def test_without_a_home_it_works(folder):
    done = cft_ray("plan", "grid.yaml", cwd=folder, HOME="/", CFT_RAY_CACHE="", TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert (folder / f"cft-ray-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_standard_input_version_and_short_help(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    text = (folder / "grid.yaml").read_text()
    command = [sys.executable, "-c", CODE, "plan", "-", "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == cft_ray("plan", "grid.yaml", "--json", cwd=folder).stdout
    assert cft_ray("--version", cwd=folder).stdout.startswith("cft-ray ")
    assert "--set" in cft_ray("plan", "-h", cwd=folder).stdout
    refused(cft_ray("status", "--storage", "absent", cwd=folder), "absent")


WEAK = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
"""Without root's right to write where the mode forbids it."""


def test_with_a_home_that_is_read_only_it_works(folder):
    home, temporary = folder / "home", folder / "temporary"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    temporary.mkdir()
    for closed in (home / ".cache" / "huggingface", home / ".cache", home):
        closed.chmod(0o555)
    weak = WEAK if os.geteuid() == 0 else ()
    if weak and shutil.which(weak[0]) is None:
        pytest.skip("root writes everywhere, and there is no setpriv to take that from it")
    names = ("CFT_RAY_CACHE", "XDG_CACHE_HOME", "RAY_ADDRESS", "HF_HOME", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    code = (
        "import os; from cft_ray.machine import machine_folder, prepare_home; prepare_home(); print(machine_folder('x'));"
        "print(*(os.environ.get(name) for name in ('HOME', 'HF_HOME', 'TRITON_CACHE_DIR', 'VLLM_CACHE_ROOT')))"
    )
    try:
        said, done = (
            subprocess.run(
                [*weak, sys.executable, "-c", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            for command in ([code], [CODE, "plan", "grid.yaml"])
        )
        assert done.returncode == 0 and "mistral-toy" in done.stdout, done.stderr
        own = temporary / f"cft-ray-{os.getuid()}"
        # The cache that was filled beforehand stays in use; what must be written goes elsewhere.
        assert said.stdout.split() == [
            str(own / "cache" / "x"),
            str(home),
            "None",
            str(own / ".triton"),
            str(own / ".cache/vllm"),
        ]
        assert sorted(path.name for path in home.rglob("*")) == [".cache", "huggingface"]
    finally:
        for closed in (home, home / ".cache", home / ".cache" / "huggingface"):
            closed.chmod(0o755)
