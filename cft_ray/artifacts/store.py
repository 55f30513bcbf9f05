"""The artifact store: ``{storage}/artifacts/{kind}/{fingerprint}/``, complete once ``manifest.json`` is there.

Each attempt puts its files into a folder of its own, which no other attempt touches. One conditional write of the manifest,
which names the folder, makes them the artifact: of two publishers the first stands, and the second adopts it. Folders that the
manifest does not name are of attempts under way, or of dead ones; whoever has published removes those of earlier attempts,
which can publish no more. An artifact never changes. It is checked before it is used, and one whose files differ from its
manifest at a second look too is removed, so that the plan makes it again.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from pyarrow import parquet as pq

from cft_ray.artifacts import sound, unpublished
from cft_ray.artifacts.manifest import (
    KIND,
    MANIFEST,
    ArtifactFile,
    BadManifest,
    Manifest,
    attempt_of,
    describe_files,
    folder_name,
    read_manifest,
    table_files,
)
from cft_ray.errors import UserError
from cft_ray.machine import machine_folder
from cft_ray.plan.stage import Stage
from cft_ray.storage.cache import Kept, find, forget, keep
from cft_ray.storage.errors import StorageError, Unavailable
from cft_ray.storage.local import remove_local, sync
from cft_ray.storage.root import Storage

WHOLE = "artifacts"
"""what this machine's copies of artifacts are called in its cache"""


class ArtifactStore:
    """Artifacts of one storage. Picklable; cheap to make."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._kept: dict[str, Kept] = {}
        """downloads that are in use as long as this object lives"""

    def __reduce__(self) -> tuple[type["ArtifactStore"], tuple[Storage]]:
        return ArtifactStore, (self.storage,)

    def exists(self, kind: str, fingerprint: str) -> bool:
        """Whether there is a manifest (not whether it is sound: `verify`)."""
        return bool(self.storage.size("artifacts", kind, fingerprint, MANIFEST))

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

    def present(self, names: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of some (kind, fingerprint) that have a manifest."""
        names = list(names)
        with ThreadPoolExecutor(max_workers=16) as pool:
            return {name for name, there in zip(names, pool.map(lambda name: self.exists(*name), names), strict=True) if there}

    def listing(self) -> list[tuple[str, str]]:
        """(kind, fingerprint) of every folder that may be an artifact; nothing is opened."""
        found = []
        for kind in self.storage.list("artifacts"):
            if not kind.is_file and KIND.fullmatch(kind.name):
                entries = self.storage.list("artifacts", kind.name)
                found += [(kind.name, entry.name) for entry in entries if not entry.name.startswith(".")]
        return found

    def manifests(self) -> Iterator[Manifest]:
        """All sound manifests, read in threads; what a plan compares its stages with."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            for manifest in pool.map(lambda name: self.manifest(*name), self.listing()):
                if manifest is not None:
                    yield manifest

    def stage_folder(self, kind: str, fingerprint: str, attempt: int) -> Path:
        """An empty local folder for a stage to fill, of this attempt alone.

        With a local storage it lies where it will stay, so that publishing moves and copies nothing.
        """
        folder = self._output(kind, fingerprint, folder_name(attempt))
        with self.storage.writing():
            folder.mkdir(parents=True)
        return folder

    def _output(self, kind: str, fingerprint: str, name: str) -> Path:
        """Where a stage's output lies until it is published."""
        if self.storage.local:
            return self.storage.folder("artifacts", kind, fingerprint, name)
        return machine_folder("staging", self._place(), fingerprint, name)

    def finished(
        self,
        stage: Stage,
        folder: Path,
        *,
        outputs: dict[str, Any],
        attempt: int,
        seconds: float,
        versions: dict[str, str],
    ) -> Manifest:
        """The manifest that a stage's output will have. From now on this machine knows that it is finished: see `adopt`.

        Args:
            stage: what was run.
            folder: from `stage_folder`, filled.
            outputs: small JSON for the manifest.
            attempt: the number under which the stage's rows go to the tables.
            seconds: the attempt's duration.
            versions: library -> version.
        """
        files = describe_files(folder)
        made = Manifest(
            fingerprint=stage.fingerprint,
            kind=stage.kind,
            version=stage.spec.version,
            settings=stage.spec.identity(),
            inputs=dict(stage.inputs),
            label=stage.label,
            outputs=outputs,
            files=files,
            rows={table: pq.read_metadata(folder / path).num_rows for table, path in table_files(files).items()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            folder=folder.name,
            attempt=attempt,
            seconds=seconds,
            versions=versions,
        )
        self._remember(made)
        return made

    def adopt(self, stage: Stage, folder: Path, attempt: int) -> Manifest | None:
        """Take over what an earlier attempt had finished on this machine, and could not publish.

        Args:
            stage: to be run.
            folder: from `stage_folder`; filled.
            attempt: its number.

        Returns:
            as `finished`; None: nothing whole is left here, and ``folder`` is empty.
        """
        for left in unpublished.remembered(self._place(), stage.kind, stage.fingerprint):
            if left.attempt >= attempt:
                continue
            try:
                unpublished.take_over(self._output(stage.kind, stage.fingerprint, left.folder), folder)
                if describe_files(folder) == left.files:
                    made = left.model_copy(update={"folder": folder.name, "attempt": attempt})
                    self._remember(made)
                    return made
            except OSError:  # it has been removed, or published from elsewhere
                pass
            self._drop(left)
            remove_local(folder)
            folder.mkdir(parents=True)
        return None

    def publish(self, made: Manifest) -> Manifest:
        """Make a finished output the artifact of its stage; its folder is used up.

        Where the artifact already exists (another run was faster), that one stays and the output is dropped.

        Args:
            made: from `finished` or `adopt`.

        Returns:
            the manifest that stands.

        Raises:
            UserError: the storage cannot be written to; the output is as it was, and the next attempt here may `adopt` it.
        """
        try:
            standing = self.manifest(made.kind, made.fingerprint) or self._bring(made)
        except Unavailable:
            raise
        except (OSError, UserError):  # one that has published meanwhile removes the files of earlier attempts
            if (found := self.manifest(made.kind, made.fingerprint)) is None:
                raise
            standing = found
        try:
            if standing.folder != made.folder:
                self.storage.delete("artifacts", made.kind, made.fingerprint, made.folder)
            elif made.attempt > 1:
                self._clear(standing)
        except StorageError as error:  # the artifact stands; what is left beside it is nobody's
            logging.getLogger(__name__).warning("leavings of %s stay: %s", made.fingerprint[:12], error)
        if standing.folder == made.folder and not self.storage.local:
            self._keep(standing)
        unpublished.forget(self._place(), made)
        self.tidy(standing)
        return standing

    def scratch(self, fingerprint: str) -> Path:
        """Local folder of a stage that survives its attempts on this machine."""
        return machine_folder("scratch", self._place(), fingerprint)

    def has_left(self, made: Manifest) -> bool:
        """Whether attempts at an artifact have left something on this machine; nothing is opened."""
        folders = [self.scratch(made.fingerprint), unpublished.folder(self._place(), made.fingerprint)]
        if not self.storage.local:
            folders.append(self._output(made.kind, made.fingerprint, made.folder).parent)
        return any(folder.exists() for folder in folders)

    def tidy(self, standing: Manifest) -> None:
        """Remove what the attempts up to the one that stands have left on this machine: they can publish no more."""
        for left in unpublished.remembered(self._place(), standing.kind, standing.fingerprint):
            if left.folder == standing.folder:
                unpublished.forget(self._place(), left)
            elif left.attempt < standing.attempt:
                self._drop(left)
        staging = self._output(standing.kind, standing.fingerprint, standing.folder).parent
        if not self.storage.local and staging.is_dir():
            for folder in staging.iterdir():
                if (attempt_of(folder.name) or 0) <= standing.attempt:
                    remove_local(folder)
            with contextlib.suppress(OSError):  # a later attempt is at work
                staging.rmdir()

    def _drop(self, left: Manifest) -> None:
        remove_local(self._output(left.kind, left.fingerprint, left.folder))
        unpublished.forget(self._place(), left)

    def _remember(self, made: Manifest) -> None:
        """Note a finished output; where this machine cannot, the output is as good, and an end of this process would lose it."""
        try:
            unpublished.remember(self._place(), made)
        except OSError as error:
            logging.getLogger(__name__).warning("a finished output could not be noted: %s", error)

    def _bring(self, made: Manifest) -> Manifest:
        """Bring the files to their place, and make them the artifact; returns the manifest that stands then."""
        folder = self._output(made.kind, made.fingerprint, made.folder)
        if self.storage.local:
            with self.storage.writing():
                _sync_below(folder)
        else:
            with ThreadPoolExecutor(max_workers=4) as pool:
                sent = [
                    pool.submit(self.storage.upload, folder / file.path, *sound.file_place(made, file)) for file in made.files
                ]
                for arrived in sent:
                    arrived.result()
        return self._stand(made)

    def _stand(self, made: Manifest) -> Manifest:
        """Put a manifest where there is no sound one; returns the one that stands then."""
        parts = ("artifacts", made.kind, made.fingerprint, MANIFEST)
        while self.storage.put_if_absent(*parts, data=made.encode()) is None:
            if standing := self.manifest(made.kind, made.fingerprint):
                return standing
            found = self.storage.read_version(*parts)  # one that is not sound, or that has just been removed
            if found is not None and self.storage.put_if_unchanged(*parts, data=made.encode(), version=found[1]) is not None:
                break
        return made

    def _clear(self, made: Manifest) -> None:
        """Remove the files of earlier attempts: they can publish no more."""
        parts = ("artifacts", made.kind, made.fingerprint)
        for entry in self.storage.list(*parts):
            attempt = attempt_of(entry.name)
            if attempt is not None and attempt < made.attempt and entry.name != made.folder:
                self.storage.delete(*parts, entry.name)

    def remove(self, kind: str, fingerprint: str) -> None:
        """As `cft_ray.artifacts.sound.remove`."""
        sound.remove(self.storage, kind, fingerprint)

    def verify(self, kind: str, fingerprint: str) -> Manifest:
        """As `cft_ray.artifacts.sound.verify`."""
        return sound.verify(self.storage, kind, fingerprint)

    def _place(self) -> str:
        """Names the storage among this machine's folders."""
        return sha256(self.storage.uri.encode()).hexdigest()[:12]

    def fetch(self, kind: str, fingerprint: str) -> Path:
        """The artifact as a local folder: the folder itself, or a download that stays here as long as this object lives.

        Raises:
            CorruptArtifact: there is none, or it does not match its manifest (and has been removed).
        """
        manifest = self.require(kind, fingerprint)
        return self._local(manifest, manifest.files, WHOLE)

    def fetch_tables(self, manifest: Manifest) -> dict[str, Path]:
        """As `fetch`, of an artifact's tables alone: table -> local file. Weights, which lie beside them, stay where they are."""
        named = table_files(manifest.files)
        files = [file for file in manifest.files if file.path in set(named.values())]
        folder = self._local(manifest, files, "tables") if files else Path()
        return {table: folder / path for table, path in named.items()}

    def _kept_name(self, manifest: Manifest) -> str:
        """Names an artifact among this machine's copies."""
        content = f"{self.storage.uri}\n{manifest.encode().decode()}".encode()
        return f"{manifest.kind}-{sha256(content).hexdigest()[:32]}"

    def _keep(self, made: Manifest) -> None:
        """What was made here and brought to an object store stays here as well: the stages that use it do not fetch it."""
        folder = self._output(made.kind, made.fingerprint, made.folder)
        try:
            keep(WHOLE, self._kept_name(made), partial(unpublished.take_over, folder))
        except OSError as error:  # a copy fewer
            logging.getLogger(__name__).warning("no copy of %s is kept here: %s", made.fingerprint[:12], error)

    def _local(self, manifest: Manifest, files: Sequence[ArtifactFile], kind: str) -> Path:
        """A local folder with some files of an artifact; ``kind``: of the cache's things that it is."""
        if self.storage.local:
            folder = self.storage.folder(*sound.place_of(manifest))
            if not sound.sizes_match(folder, files):
                self.verify(manifest.kind, manifest.fingerprint)  # says what differs, and removes it
            return folder
        name, bring = self._kept_name(manifest), partial(sound.download, self.storage, manifest, files)
        for _ in range(sound.LOOKS):
            whole = self._kept.get(name) or find(WHOLE, name)  # which has its tables too
            kept = whole or self._kept.get(f"{kind} {name}") or keep(kind, name, bring)
            if sound.sizes_match(kept.path, files):
                self._kept[name if whole or kind == WHOLE else f"{kind} {name}"] = kept
                return kept.path
            for held in (name, f"{kind} {name}"):
                self._kept.pop(held, None)
            forget(kept)
        raise sound.CorruptArtifact(manifest.kind, manifest.fingerprint, "this machine's copy changes by itself")


def _sync_below(folder: Path) -> None:
    """Make a local folder durable: the content of its files, and their names."""
    for path in (*folder.rglob("*"), folder, folder.parent, folder.parent.parent):
        sync(path)
