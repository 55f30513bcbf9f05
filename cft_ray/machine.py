"""What this machine leaves to this process: CPUs, a home, folders for what can be made again, short paths for sockets.

Batch systems, containers and cron take some of these away: a job has 8 of 128 cores, a user id without a home, a home that
is read-only, a `TMPDIR` of a hundred characters. Here stands what is used instead. Imports nothing of this package but its
errors.
"""

import math
import os
import stat
import tempfile
from pathlib import Path

from cft_ray.errors import UserError

LONGEST_TEMPORARY = 32
"""characters of a temporary folder below which Ray's and vLLM's sockets (up to 75 characters more) fit into the 107 that
Linux allows a socket's path"""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")
_TEMPORARY = ("RAY_TMPDIR", "TMPDIR")
"""The environment variables that name the temporary folder, Ray's own first."""
_CACHES = {"VLLM_CACHE_ROOT": ".cache/vllm", "TRITON_CACHE_DIR": ".triton", "HF_HOME": ".cache/huggingface"}
"""The libraries' folders below the home that they cannot do without."""


def devices_for(gpus: float) -> dict[str, str]:
    """What is set in the environment of a process that is given this many GPUs.

    Ray names the GPUs that a process is given. One that is given none is told so here: it would see all of its machine's, and
    use what others hold.
    """
    return {} if gpus > 0 else {"CUDA_VISIBLE_DEVICES": ""}


def cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: its affinity (Slurm, taskset, cpusets) or, where less, its cgroups' quota, at least 1.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.floor(quota) for quota in _quotas(root))]))


def instruction_set(root: Path = Path("/")) -> str:
    """The widest vector instructions that PyTorch's CPU kernels take here: ``AVX512``, ``AVX2`` or ``DEFAULT``.

    Sums are rounded otherwise under each, so a training's last digits depend on it. As `torch.backends.cpu.get_cpu_capability`,
    without importing torch: what ``ATEN_CPU_CAPABILITY`` asks for, else what the processor's flags allow.

    Args:
        root: where ``proc`` is.
    """
    wished = os.environ.get("ATEN_CPU_CAPABILITY", "").upper()
    if wished in ("DEFAULT", "AVX2", "AVX512"):
        return wished
    lines = (_text(root / "proc/cpuinfo") or "").splitlines()
    flags = set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))
    if {"avx512vl", "avx512bw", "avx512dq", "fma"} <= flags:
        return "AVX512"
    return "AVX2" if {"avx2", "fma"} <= flags else "DEFAULT"


def _quotas(root: Path) -> list[float]:
    """CPUs that each cgroup above this process grants, version 2 (``cpu.max``) and 1 (``cpu.cfs_quota_us``)."""
    found = []
    mount = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = mount, "cpu.max"
        elif "cpu" in controllers.split(","):
            top = next((mount / folder for folder in (controllers, "cpu") if (mount / folder).is_dir()), mount / "cpu")
            name = "cpu.cfs_quota_us"
        else:
            continue
        # In a container the path may be the host's, of which only the top is seen here.
        own = Path(path.lstrip("/"))
        for folder in (top / own, *(top / parent for parent in own.parents), top):
            words = (_text(folder / name) or "").split()
            if name == "cpu.cfs_quota_us":
                words += (_text(folder / "cpu.cfs_period_us") or "").split()
            if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
                found.append(int(words[0]) / int(words[1]))
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def machine_folder(*parts: str) -> Path:
    """A folder of this machine for what can be made again: downloads, scratch, digests of files.

    ``CFT_RAY_CACHE`` names it; else it is ``~/.cache/cft-ray``, and where that cannot be written to, a folder of this user's
    below the temporary one: what is not kept costs time only.
    """
    if named := os.environ.get("CFT_RAY_CACHE"):
        return Path(named, *parts)
    home = _home()
    if home is not None and _writable(home / ".cache" / "cft-ray"):
        return Path(home, ".cache", "cft-ray", *parts)
    return Path(own_folder(Path(tempfile.gettempdir())), "cache", *parts)


def prepare_home() -> None:
    """Give this process and its children a home where there is none, and the libraries caches where it is read-only.

    torch, Triton, vLLM and the hub's client look for `~` and for the user's name, and raise where there is none.
    """
    home = _home()
    if home is None or not os.path.isdir(home) or not os.access(home, os.X_OK):  # noqa: PTH112 -- no error where it is closed
        fallback = own_folder(Path(tempfile.gettempdir()))
        os.environ["HOME"] = str(fallback)
        os.environ.setdefault("USER", str(os.getuid()))
    elif not os.access(home, os.W_OK):
        fallback = own_folder(Path(tempfile.gettempdir()))
        for variable, folder in _CACHES.items():
            # A cache that was filled beforehand stays in use, although it can only be read.
            if variable not in os.environ and not (home / folder).is_dir():
                os.environ[variable] = str(fallback / folder)


def prepare_temporary() -> str | None:
    """Move the temporary folder of this process and its children where its path is too long for sockets.

    Returns:
        what was moved and where to, in words; None: nothing had to be.

    Raises:
        UserError: there is no short folder that can be written to.
    """
    too_long = long_temporary()
    if too_long is None:
        return None
    short = next((own_folder(Path(parent)) for parent in _SHORT if os.access(parent, os.W_OK | os.X_OK)), None)
    if short is None or len(str(short)) > LONGEST_TEMPORARY:
        raise UserError("its path is too long for sockets", where=too_long, fix="name a temporary folder with a short path")
    for variable in _TEMPORARY:
        if variable in os.environ:
            os.environ[variable] = str(short)
    tempfile.tempdir = None  # it remembers what it has seen
    return f"{too_long}: its path is too long for sockets; {short} is used instead"


def long_temporary() -> str | None:
    """The temporary folder with its variable, where its path is too long for sockets; else None."""
    for variable in _TEMPORARY:
        if path := os.environ.get(variable):
            return f"{variable}={path}" if len(path.rstrip("/")) > LONGEST_TEMPORARY else None
    return None


def own_folder(parent: Path) -> Path:
    """A folder of this user alone below a folder that others may write to: ``cft-ray-UID``, mode 0700.

    One that is not ours or that others can write to is left alone, and one with a new name is made.
    """
    folder = parent / f"cft-ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        found = None
    if found is None or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="cft-ray-", dir=parent))
    return folder


def _home() -> Path | None:
    """The user's home; None where there is none, or only the root folder."""
    try:
        home = Path.home()
    except RuntimeError:  # an id that no user has, and no HOME
        return None
    return home if home.is_absolute() and home != Path("/") else None


def _writable(folder: Path) -> bool:
    """Whether a folder can be written to, or could be made."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if os.path.exists(parent))  # noqa: PTH110
    return os.access(existing, os.W_OK | os.X_OK)
