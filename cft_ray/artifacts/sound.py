"""Whether an artifact is what its manifest says; one that is not, at a second look too, is taken away.

Of an artifact that another process replaces meanwhile, nothing is taken: every removal is of the state that was judged.
"""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cft_ray.artifacts.manifest import MANIFEST, ArtifactFile, BadManifest, Manifest, decode, file_digest
from cft_ray.storage.entry import Version
from cft_ray.storage.root import Storage

REMOVED = b""
"""what is put over the manifest of an artifact that is taken away"""
LOOKS = 2
"""times that an artifact must be found damaged before it is removed"""


class CorruptArtifact(Exception):
    """An artifact's files do not match its manifest; it has been removed.

    Args:
        kind: stage kind.
        fingerprint: of the artifact.
        reason: the first difference found.
    """

    def __init__(self, kind: str, fingerprint: str, reason: str) -> None:
        super().__init__(kind, fingerprint, reason)
        self.kind, self.fingerprint, self.reason = kind, fingerprint, reason

    def __str__(self) -> str:
        return f"{self.kind} {self.fingerprint[:12]}: {self.reason}"


class MissingArtifact(CorruptArtifact):
    """There is no such artifact: no manifest, whatever may be on its way there."""


def place_of(manifest: Manifest) -> tuple[str, ...]:
    """Parts of the path of the folder of an artifact's files."""
    return "artifacts", manifest.kind, manifest.fingerprint, *([manifest.folder] if manifest.folder else [])


def file_place(manifest: Manifest, file: ArtifactFile) -> tuple[str, ...]:
    """Parts of the path of one of an artifact's files."""
    return *place_of(manifest), *file.path.split("/")


def verify(storage: Storage, kind: str, fingerprint: str) -> Manifest:
    """Check every file against the manifest; remove the artifact if one differs, and differs again at a second look.

    A local storage is checked by size and SHA-256. An object store's files are checked by size here and by SHA-256
    when they are fetched, as checking them costs their download.

    Raises:
        MissingArtifact: there is no manifest; nothing is removed.
        CorruptArtifact: something differs (and the artifact is gone now).
    """
    judged, reason = None, None
    for _ in range(LOOKS):
        judged = _judged(storage, kind, fingerprint)
        if judged is None:
            raise MissingArtifact(kind, fingerprint, "there is no such artifact")
        try:
            manifest = decode(judged[0], kind, fingerprint)
        except BadManifest as error:
            reason = f"its manifest is not sound ({error})"
            continue
        reason = difference(storage, manifest)
        if reason is None:
            return manifest
    assert judged is not None
    _remove(storage, kind, fingerprint, *judged)
    raise CorruptArtifact(kind, fingerprint, reason or "unknown")


def difference(storage: Storage, manifest: Manifest) -> str | None:
    """The first difference between a manifest and its files in the storage; None: there is none."""
    for file in manifest.files:
        parts = file_place(manifest, file)
        size = storage.size(*parts)
        if size != file.size:
            return f"{file.path} is missing" if size is None else f"{file.path} has {size} bytes instead of {file.size}"
        if storage.local and file_digest(storage.folder(*parts)) != file.sha256:
            return f"{file.path} has another SHA-256"
    return None


def sizes_match(folder: Path, files: Sequence[ArtifactFile]) -> bool:
    """Whether a local folder has these files, by their sizes."""
    paths = [(folder / file.path, file.size) for file in files]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def download(storage: Storage, manifest: Manifest, files: Sequence[ArtifactFile], target: Path) -> None:
    """Bring some of an artifact's files to a local folder, each checked by its SHA-256.

    Raises:
        CorruptArtifact: one is missing or differs, a second time too (and the artifact has been removed).
    """
    with ThreadPoolExecutor(max_workers=4) as pool:
        for arrived in [pool.submit(_bring, storage, manifest, file, target / file.path) for file in files]:
            arrived.result()


def _bring(storage: Storage, manifest: Manifest, file: ArtifactFile, target: Path) -> None:
    reason = ""
    for _ in range(LOOKS):  # what was damaged on the way comes whole the second time
        try:
            if storage.download(target, *file_place(manifest, file)) == file.sha256:
                return
        except FileNotFoundError:
            reason = f"{file.path} is missing"
        else:
            reason = f"{file.path} has another SHA-256"
    judged = _judged(storage, manifest.kind, manifest.fingerprint)
    if judged is not None and judged[0] == manifest.encode():  # else another has been published meanwhile
        _remove(storage, manifest.kind, manifest.fingerprint, *judged)
    raise CorruptArtifact(manifest.kind, manifest.fingerprint, reason)


def remove(storage: Storage, kind: str, fingerprint: str) -> None:
    """Take an artifact away: its manifest first, then the files that this names. What others put there stays."""
    judged = _judged(storage, kind, fingerprint)
    if judged is not None:
        _remove(storage, kind, fingerprint, *judged)


def _remove(storage: Storage, kind: str, fingerprint: str, data: bytes, version: Version) -> None:
    """Take an artifact away whose manifest is still in the state that was judged; another that stands by now stays.

    A delete has no condition that all object stores know. So an empty manifest is put over the one that was judged, which
    is decided as any conditional write is, and stays: it is as good as none, and a publisher puts its own over it.
    """
    parts = ("artifacts", kind, fingerprint)
    if storage.put_if_unchanged(*parts, MANIFEST, data=REMOVED, version=version) is None:
        return
    with contextlib.suppress(BadManifest):
        manifest = decode(data, kind, fingerprint)
        for name in [manifest.folder] if manifest.folder else [file.path for file in manifest.files]:
            storage.delete(*parts, *name.split("/"))


def _judged(storage: Storage, kind: str, fingerprint: str) -> tuple[bytes, Version] | None:
    """A manifest as it reads now, and its state; None where there is none."""
    found = storage.read_version("artifacts", kind, fingerprint, MANIFEST)
    return found if found is not None and found[0] != REMOVED else None
