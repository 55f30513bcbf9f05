"""The artifact store: ``{storage}/artifacts/{kind}/{fingerprint}/``, complete once ``manifest.json`` is there.

An artifact never changes. It appears whole (locally by one rename; in an object store its manifest is put last), it is
checked before it is used, and one that does not match its manifest is removed, so that the plan makes it again.
"""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pyarrow import fs
from pyarrow import parquet as pq

from cft_ray.artifacts.manifest import (
    KIND,
    MANIFEST,
    BadManifest,
    Manifest,
    describe_files,
    file_digest,
    read_manifest,
    table_files,
)
from cft_ray.artifacts.storage import Storage, remove_local, sync, write_local
from cft_ray.machine import machine_folder
from cft_ray.plan.stage import Stage


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


class ArtifactStore:
    """Artifacts of one storage. Picklable; cheap to make."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def exists(self, kind: str, fingerprint: str) -> bool:
        """Whether there is a manifest (not whether it is sound: `verify`)."""
        return self.storage.size("artifacts", kind, fingerprint, MANIFEST) is not None

    def manifest(self, kind: str, fingerprint: str) -> Manifest | None:
        """The manifest; None where there is no artifact or its manifest is not sound."""
        try:
            return read_manifest(self.storage, kind, fingerprint)
        except BadManifest:
            return None

    def require(self, kind: str, fingerprint: str) -> Manifest:
        """The manifest of an artifact that must exist.

        Raises:
            CorruptArtifact: there is none, or it is not sound.
        """
        return self.manifest(kind, fingerprint) or self.verify(kind, fingerprint)

    def listing(self) -> list[tuple[str, str]]:
        """(kind, fingerprint) of every folder that may be an artifact; nothing is opened."""
        found = []
        for kind in self.storage.list("artifacts"):
            if kind.type == fs.FileType.Directory and KIND.fullmatch(kind.base_name):
                entries = self.storage.list("artifacts", kind.base_name)
                found += [(kind.base_name, entry.base_name) for entry in entries if not entry.base_name.startswith(".")]
        return found

    def manifests(self) -> Iterator[Manifest]:
        """All sound manifests, read in threads; what a plan compares its stages with."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            for manifest in pool.map(lambda name: self.manifest(*name), self.listing()):
                if manifest is not None:
                    yield manifest

    def stage_folder(self, kind: str, fingerprint: str, attempt: int) -> Path:
        """An empty local folder for a stage to fill; leftovers of earlier attempts are removed.

        With a local storage it lies beside the artifact, so that publishing is a rename and copies nothing.
        """
        parent = self.storage.folder("artifacts", kind) if self.storage.local else machine_folder("staging")
        with self.storage.writing():
            parent.mkdir(parents=True, exist_ok=True)
            for earlier in range(1, attempt + 1):  # by name: listing all artifacts each time would grow with the grid
                remove_local(parent / f".staging-{fingerprint}-{earlier}")
            folder = parent / f".staging-{fingerprint}-{attempt}"
            folder.mkdir()
        return folder

    def publish(
        self, stage: Stage, folder: Path, *, outputs: dict[str, Any], attempt: int, seconds: float, versions: dict[str, str]
    ) -> Manifest:
        """Make ``folder``'s content the artifact of ``stage``; the folder is used up.

        Where the artifact already exists (another run was faster), that one stays and ``folder`` is dropped.

        Args:
            stage: what was run.
            folder: from `stage_folder`, filled.
            outputs: small JSON for the manifest.
            attempt: the number under which the stage's rows go to the tables.
            seconds: the attempt's duration.
            versions: library -> version.

        Returns:
            the manifest that stands.

        Raises:
            UserError: the storage cannot be written to.
        """
        kind, fingerprint = stage.kind, stage.fingerprint
        if standing := self.manifest(kind, fingerprint):
            remove_local(folder)
            return standing
        files = describe_files(folder)
        made = Manifest(
            fingerprint=fingerprint,
            kind=kind,
            version=stage.spec.version,
            settings=stage.spec.identity(),
            inputs=dict(stage.inputs),
            label=stage.label,
            outputs=outputs,
            files=files,
            rows={table: pq.read_metadata(folder / path).num_rows for table, path in table_files(files).items()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            attempt=attempt,
            seconds=seconds,
            versions=versions,
        )
        if self.storage.local:
            self._rename_into_place(folder, made)
        else:
            self._upload(folder, made)
        return made

    def _upload(self, folder: Path, made: Manifest) -> None:
        parts = ("artifacts", made.kind, made.fingerprint)
        with ThreadPoolExecutor(max_workers=4) as pool:
            for sent in [pool.submit(self.storage.upload, folder / file.path, *parts, file.path) for file in made.files]:
                sent.result()
        self.storage.write(*parts, MANIFEST, data=made.encode())
        remove_local(folder)

    def _rename_into_place(self, folder: Path, made: Manifest) -> None:
        final = self.storage.folder("artifacts", made.kind, made.fingerprint)
        with self.storage.writing():
            for file in made.files:
                sync(folder / file.path)
            write_local(folder / MANIFEST, made.encode())
            if final.exists():  # without a sound manifest: the remains of a removal that was cut off
                remove_local(final)
            try:
                folder.rename(final)
            except OSError:
                if not self.exists(made.kind, made.fingerprint):
                    raise
                remove_local(folder)  # another run published between the look and the rename
            sync(final.parent)

    def remove(self, kind: str, fingerprint: str) -> None:
        """Take an artifact away; the manifest goes first, so that no half of it can be taken for whole."""
        self.storage.delete("artifacts", kind, fingerprint, MANIFEST)
        self.storage.delete("artifacts", kind, fingerprint)

    def verify(self, kind: str, fingerprint: str) -> Manifest:
        """Check every file against the manifest; remove the artifact if one differs.

        A local storage is checked by size and SHA-256. An object store's files are checked by size here and by SHA-256
        when they are fetched, as checking them costs their download.

        Raises:
            CorruptArtifact: something differs (and the artifact is gone now), or there is no artifact.
        """
        try:
            manifest = read_manifest(self.storage, kind, fingerprint)
            reason = "there is no such artifact" if manifest is None else self._difference(manifest)
        except BadManifest as error:
            manifest, reason = None, f"its manifest is not sound ({error})"
        if manifest is None or reason is not None:
            self.remove(kind, fingerprint)
            raise CorruptArtifact(kind, fingerprint, reason or "unknown")
        return manifest

    def _difference(self, manifest: Manifest) -> str | None:
        parts = ("artifacts", manifest.kind, manifest.fingerprint)
        for file in manifest.files:
            size = self.storage.size(*parts, file.path)
            if size != file.size:
                return f"{file.path} is missing" if size is None else f"{file.path} has {size} bytes instead of {file.size}"
            if self.storage.local and file_digest(self.storage.folder(*parts, file.path)) != file.sha256:
                return f"{file.path} has another SHA-256"
        return None

    def fetch(self, kind: str, fingerprint: str) -> Path:
        """The artifact as a local folder: the folder itself, or a download that is kept on this machine.

        Raises:
            CorruptArtifact: there is none, or it does not match its manifest (and has been removed).
        """
        if self.storage.local:
            manifest = self.manifest(kind, fingerprint)
            folder = self.storage.folder("artifacts", kind, fingerprint)
            if manifest is None or not _sizes_match(folder, manifest):
                self.verify(kind, fingerprint)  # says what differs, and removes it
            return folder
        cache = machine_folder("artifacts", sha256(self.storage.uri.encode()).hexdigest()[:12], kind)
        folder = cache / fingerprint
        manifest = self.verify(kind, fingerprint)
        if folder.exists():
            if (folder / MANIFEST).read_bytes() == manifest.encode() and _sizes_match(folder, manifest):
                return folder
            remove_local(folder)
        arriving = cache / f".{fingerprint}-{os.getpid()}-{os.urandom(3).hex()}"
        try:
            self._download(manifest, arriving)
            with contextlib.suppress(OSError):  # another process has put the same files there
                arriving.rename(folder)
        finally:
            remove_local(arriving)
        return folder

    def _download(self, manifest: Manifest, target: Path) -> None:
        parts = ("artifacts", manifest.kind, manifest.fingerprint)
        target.mkdir(parents=True)
        with ThreadPoolExecutor(max_workers=4) as pool:
            digests = pool.map(lambda file: self.storage.download(target / file.path, *parts, file.path), manifest.files)
            for file, digest in zip(manifest.files, digests, strict=True):
                if digest != file.sha256:
                    self.remove(manifest.kind, manifest.fingerprint)
                    raise CorruptArtifact(manifest.kind, manifest.fingerprint, f"{file.path} has another SHA-256")
        write_local(target / MANIFEST, manifest.encode())


def _sizes_match(folder: Path, manifest: Manifest) -> bool:
    paths = [(folder / file.path, file.size) for file in manifest.files]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)
