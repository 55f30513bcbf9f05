"""What this machine keeps of other places: each thing is brought here once, whatever number of processes ask for it.

    {cache}/{kind}/{key}/…           complete: it took its name by one rename
    {cache}/{kind}/.{key}.lock       who uses it holds a shared lock, who removes it an exclusive one; its content is the size in
                                     bytes, its time that of the last use
    {cache}/{kind}/.{key}.bring      who brings it holds an exclusive lock

The cache is `cft_ray.machine.machine_folder` (``CFT_RAY_CACHE``). Above a limit (``CFT_RAY_CACHE_GIB``; by default half of the
disk) what was not used for longest goes, and never what a living process uses: a lock ends with its process.
"""

import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cft_ray.machine import machine_folder
from cft_ray.storage.local import remove_local

VARIABLE = "CFT_RAY_CACHE_GIB"


@dataclass(frozen=True)
class Kept:
    """Something that is here, and stays at least as long as this object does.

    Args:
        path: its folder.
        lock: what is open for it.
    """

    path: Path
    lock: IO[str]


def keep(kind: str, key: str, fill: Callable[[Path], None]) -> Kept:
    """A folder of the cache, filled by the first process that asks.

    Args:
        kind: sort of things.
        key: names the content: the same key, the same content.
        fill: brings the content into an empty folder, checks it, and raises where it is not right.

    Raises:
        Exception: what ``fill`` raised; nothing is kept then, and the next process tries again.
    """
    parent = machine_folder(kind)
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / key
    lock = (parent / f".{key}.lock").open("a+")
    try:
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if folder.is_dir():
                os.utime(lock.fileno())
                return Kept(folder, lock)
            with (parent / f".{key}.bring").open("a") as bringing:
                fcntl.flock(bringing, fcntl.LOCK_EX)
                if not folder.is_dir():  # another may have brought it meanwhile
                    _bring(folder, fill)
                    lock.truncate(0)
                    lock.write(str(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())))
                    lock.flush()
                    _make_room(limit(parent), besides=folder)
    except BaseException:
        lock.close()
        raise


def find(kind: str, key: str) -> Kept | None:
    """A folder of the cache, if it is there whole."""
    folder = machine_folder(kind) / key
    if not folder.is_dir():
        return None
    lock = folder.with_name(f".{key}.lock").open("a+")
    fcntl.flock(lock, fcntl.LOCK_SH)
    if not folder.is_dir():  # removed since the look
        lock.close()
        return None
    os.utime(lock.fileno())
    return Kept(folder, lock)


def limit(folder: Path) -> int:
    """Bytes that the cache may take."""
    try:
        return int(float(os.environ[VARIABLE]) * 2**30)
    except (KeyError, ValueError):
        return shutil.disk_usage(folder).total // 2


def _bring(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under a private name, then give it its own."""
    for left in folder.parent.glob(f".{folder.name}-*"):  # of a process that died: no other brings this now
        remove_local(left)
    arriving = folder.with_name(f".{folder.name}-{os.getpid()}-{os.urandom(3).hex()}")
    arriving.mkdir()
    try:
        fill(arriving)
        arriving.rename(folder)
    finally:
        remove_local(arriving)


def _make_room(limit: int, *, besides: Path) -> None:
    """Remove what was not used for longest, until the rest is below a limit; what is in use stays."""
    used: list[tuple[float, Path, int]] = []
    for lock in besides.parent.parent.glob("*/.*.lock"):
        folder = lock.with_name(lock.name[1:].removesuffix(".lock"))
        text = lock.read_text()
        if text.isdecimal() and folder.is_dir():
            used.append((lock.stat().st_mtime, folder, int(text)))
    total = sum(size for _, _, size in used)
    for _, folder, size in sorted(used):
        if total <= limit:
            return
        if folder != besides and _removed(folder):
            total -= size


def _removed(folder: Path) -> bool:
    """Remove a folder that nobody uses; whether it is gone."""
    with folder.with_name(f".{folder.name}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        gone = folder.with_name(f".{folder.name}-gone-{os.urandom(3).hex()}")
        try:
            folder.rename(gone)
        except FileNotFoundError:
            return True
        remove_local(gone)
        return True


def forget(kept: Kept) -> None:
    """Remove something that turned out to be damaged; whoever uses it has its files open."""
    gone = kept.path.with_name(f".{kept.path.name}-gone-{os.urandom(3).hex()}")
    try:
        kept.path.rename(gone)
    except FileNotFoundError:
        return
    remove_local(gone)
