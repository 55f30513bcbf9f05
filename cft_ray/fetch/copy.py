"""Files of hub repositories to a folder or bucket: each whole or absent, the manifest last.

The hub client downloads into a folder of its own beside the target (on this machine, for a bucket); files that had arrived
when it was interrupted are found there by the next run. What arrives is compared with what the hub says it is, and only
then takes its place. A run that finds a manifest and its files asks the hub nothing.
"""

import glob
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.hf_api import RepoFile

from cft_ray.artifacts.fetched import Copied, CopiedFile, Fetched, Part
from cft_ray.errors import UserError
from cft_ray.fetch.hub import Listing, listing
from cft_ray.machine import machine_folder
from cft_ray.storage.hub import from_hub
from cft_ray.storage.local import CHUNK, remove_local, sync
from cft_ray.storage.root import Storage

LOOKS = 2
"""times that a file is downloaded before it counts as damaged"""


@dataclass(frozen=True)
class Result:
    """What became of one part.

    Args:
        copied: its manifest.
        new: files that were downloaded now.
        size: bytes of these.
    """

    copied: Copied
    new: int
    size: int


def copy(part: Part, fetched: Fetched, tell: Callable[[str], None] = lambda _: None) -> Result:
    """Bring a part to where `fetched` keeps it.

    Args:
        part: what is wanted.
        fetched: where to.
        tell: is given a line before a download.

    Raises:
        UserError: as `cft_ray.fetch.hub.listing`; a download that broke, or is not what the hub says it is; a storage that
            cannot be written to.
    """
    known = fetched.read(part)
    if known is not None and set(part.folders) <= set(known.languages) and _whole(fetched, part, known):
        return Result(known, 0, 0)
    languages = tuple(dict.fromkeys([*(known.languages if known else ()), *part.folders]))
    wanted = replace(part, languages=languages)
    files = listing(wanted, known.revision, known.converted) if known else listing(wanted)
    present = _present(fetched, part, files.commit)
    missing = {target: file for target, file in files.files.items() if present.get(target) != file.size}
    if missing:
        size = sum(file.size for file in missing.values())
        tell(f"{part} at {files.commit[:12]}: {len(missing)} files, {_amount(size)}")
        _download(part, fetched, files, missing)
    copied = Copied(
        repository=part.repository,
        revision=files.commit,
        converted=files.converted,
        languages=list(languages),
        files=[
            CopiedFile(path=target, source=file.path, size=file.size, sha256=_sha256(fetched, part, files.commit, target, file))
            for target, file in sorted(files.files.items())
        ],
        fetched=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    fetched.storage.write(*fetched.manifest_path(part), data=copied.model_dump_json(indent=1).encode())
    return Result(copied, len(missing), sum(file.size for file in missing.values()))


def _present(fetched: Fetched, part: Part, commit: str) -> dict[str, int]:
    """Path below the part's folder -> bytes. A file with the right size is whole: it took its place in one step."""
    folder = fetched.folder(part, commit)
    return {entry.name: entry.size for entry in fetched.storage.list(*folder, recursive=True) if entry.size is not None}


def _whole(fetched: Fetched, part: Part, known: Copied) -> bool:
    present = _present(fetched, part, known.revision)
    return all(present.get(file.path) == file.size for file in known.files)


def _download(part: Part, fetched: Fetched, files: Listing, missing: dict[str, RepoFile]) -> None:
    storage = fetched.storage
    name = f".incoming-{part.kind}-{part.repository.replace('/', '--')}-{files.commit}"
    incoming = storage.folder(name) if storage.local else machine_folder("fetch", name)
    with storage.writing():
        incoming.mkdir(parents=True, exist_ok=True)
    absent = missing
    for _ in range(LOOKS):
        _snapshot(part, files.commit, incoming, absent)
        absent = {target: file for target, file in absent.items() if not _arrived(incoming / file.path, file)}
        if not absent:
            break
    for file in absent.values():
        fix = "run the command again: it is downloaded anew"
        raise UserError(f"{file.path} did not arrive as the hub has it, {LOOKS} times", where=str(part), fix=fix)
    for target, file in missing.items():
        _place(storage, incoming / file.path, (*fetched.folder(part, files.commit), *target.split("/")))
    remove_local(incoming)


def _snapshot(part: Part, commit: str, folder: Path, files: dict[str, RepoFile]) -> None:
    """Download files of a repository into a folder; those that are there stay."""
    patterns = [glob.escape(file.path) for file in files.values()]
    from_hub(
        str(part),
        lambda: snapshot_download(
            part.repository, repo_type=part.kind, revision=commit, local_dir=folder, allow_patterns=patterns
        ),
    )


def _arrived(path: Path, file: RepoFile) -> bool:
    """Whether a file is here as the hub has it; one that is not is removed."""
    if path.is_file() and _is(path, file):
        return True
    path.unlink(missing_ok=True)
    return False


def _place(storage: Storage, source: Path, target: tuple[str, ...]) -> None:
    """The last step: one rename in a folder, one put in a bucket."""
    if not storage.local:
        storage.upload(source, *target)
        return
    with storage.writing():
        path = storage.folder(*target)
        path.parent.mkdir(parents=True, exist_ok=True)
        sync(source)
        source.replace(path)
        sync(path.parent)


def _is(path: Path, file: RepoFile) -> bool:
    """Whether a local file is the one that the hub describes: by its SHA-256, or by git's digest where it has none."""
    if path.stat().st_size != file.size:
        return False
    if file.lfs is not None:
        return _digest(path, hashlib.sha256()) == file.lfs.sha256
    return _digest(path, hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)) == file.blob_id


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sha256(fetched: Fetched, part: Part, commit: str, target: str, file: RepoFile) -> str:
    """Of a file in its place: the hub knows those of large files, the others are read."""
    if file.lfs is not None:
        return file.lfs.sha256
    return fetched.storage.digest(*fetched.folder(part, commit), target)


def _amount(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
