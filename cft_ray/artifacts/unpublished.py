"""Outputs of this machine that are finished and not published yet: what a stage's work made is not made twice because the
storage was away when it was to be published, or because the process died on the way.

    {cache}/finished/{storage}/{fingerprint}/{attempt}-{random}.json    the manifest that the output would have

The output itself lies where `ArtifactStore.stage_folder` put it. A record is written before publishing begins, and goes when
an artifact stands. Whoever claims the stage next on this machine publishes what is left, if it still is what the record says.
"""

import contextlib
import os
import shutil
from pathlib import Path

from cft_ray.artifacts.manifest import LARGEST, BadManifest, Manifest, decode
from cft_ray.machine import machine_folder
from cft_ray.storage.local import remove_local, write_local


def remember(place: str, made: Manifest) -> None:
    """Note that an output is finished.

    Args:
        place: names the storage among this machine's folders.
        made: the manifest that it would have.

    Raises:
        OSError: this machine's cache cannot be written to.
    """
    write_local(_record(place, made), made.encode())


def remembered(place: str, kind: str, fingerprint: str) -> list[Manifest]:
    """The outputs of a stage that are finished here, the newest first; records that are none are passed over."""
    found = []
    for path in reversed(_records(folder(place, fingerprint))):
        with contextlib.suppress(BadManifest, FileNotFoundError):
            if path.stat().st_size <= LARGEST:
                found.append(decode(path.read_bytes(), kind, fingerprint))
    return found


def forget(place: str, made: Manifest) -> None:
    """Remove the record of an output, and with the last one what a killed process left of another; nothing happens where there
    is none."""
    record = _record(place, made)
    record.unlink(missing_ok=True)
    if not _records(record.parent):
        remove_local(record.parent)


def folder(place: str, fingerprint: str) -> Path:
    """Where the records of a stage lie."""
    return machine_folder("finished", place, fingerprint)


def take_over(source: Path, target: Path) -> None:
    """Fill an empty folder with the files of another one, which stays whole for whoever still works with it.

    Raises:
        OSError: the other is not there (any more), or this one cannot be filled.
    """
    shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _records(folder: Path) -> list[Path]:
    """The records in a folder, the oldest attempt's first; another process may be removing them."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - `glob` does not bear that the folder goes meanwhile
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if name.endswith(".json") and not name.startswith(".")]


def _record(place: str, made: Manifest) -> Path:
    return folder(place, made.fingerprint) / f"{made.folder}.json"
