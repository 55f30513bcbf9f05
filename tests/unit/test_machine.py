"""CPUs, home and temporary folder of a process that has less of them than its machine."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from cft_ray import machine


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def tree(root: Path, cgroup: str, limits: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),  # a job's, above the step's
        ("0::/of/the/host\n", {"cpu.max": "400000 100000"}, 4),  # in a container that sees its own top only
        (
            "4:cpu,cpuacct:/d/x\n",
            {"cpu,cpuacct/d/x/cpu.cfs_quota_us": "200000", "cpu,cpuacct/d/x/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("4:cpu,cpuacct:/d/x\n", {"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000"}, 5),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cpus_are_the_least_of_affinity_and_quotas(tmp_path, eight, cgroup, limits, expected):
    assert machine.cpus(tree(tmp_path, cgroup, limits)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system with CPU affinity")
def test_one_cpu_of_affinity_is_one_cpu(repository):
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from cft_ray import machine; print(machine.cpus())"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True).stdout == "1\n"
    )


def test_the_cache_is_where_it_can_be_written(tmp_path, monkeypatch):
    for name in ("CFT_RAY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.machine_folder("a") == tmp_path / ".cache" / "cft-ray" / "a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))  # one root, one name
    assert machine.machine_folder("a") == tmp_path / ".cache" / "cft-ray" / "a"
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "own"))
    assert machine.machine_folder() == tmp_path / "own"


def test_without_a_home_there_is_a_folder_of_this_user_alone(tmp_path, monkeypatch):
    for name in ("CFT_RAY_CACHE", "XDG_CACHE_HOME", "USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/")
    own = tmp_path / f"cft-ray-{os.getuid()}"
    assert machine.machine_folder("x") == own / "cache" / "x"
    assert own.stat().st_mode & 0o777 == 0o700
    machine.prepare_home()
    assert os.environ["HOME"] == str(own) and os.environ["USER"] == str(os.getuid())


def test_a_folder_that_others_can_write_to_is_not_taken(tmp_path):
    planted = tmp_path / f"cft-ray-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    taken = machine.own_folder(tmp_path)
    assert taken != planted and taken.parent == tmp_path and taken.stat().st_mode & 0o777 == 0o700
    planted.rmdir()
    planted.symlink_to(tmp_path / "elsewhere")
    assert machine.own_folder(tmp_path) != planted and not (tmp_path / "elsewhere").exists()


def test_a_temporary_folder_too_long_for_sockets_is_moved(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    said = machine.prepare_temporary()
    assert said is not None and str(long) in said
    assert len(os.environ["TMPDIR"]) <= machine.LONGEST_TEMPORARY and tempfile.gettempdir() == os.environ["TMPDIR"]
    assert machine.prepare_temporary() is None


def test_the_instruction_set_is_the_one_that_torch_uses(monkeypatch):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert machine.instruction_set() == torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize(
    ("flags", "wished", "found"),
    [
        ("fpu sse4_2 avx fma avx2 avx512f avx512dq avx512bw avx512vl", None, "AVX512"),
        ("fpu sse4_2 avx fma avx2 avx512f", None, "AVX2"),
        ("fpu sse4_2", None, "DEFAULT"),
        ("fpu sse4_2 avx fma avx2", "default", "DEFAULT"),
    ],
)
def test_the_instruction_set_follows_the_processor_and_the_wish(tmp_path, monkeypatch, flags, wished, found):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    if wished:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", wished)
    assert machine.instruction_set(tmp_path) == found
