"""The manifest: what makes an artifact exist, and how it is known to be whole.

A manifest comes from a storage that others may write to, so it is checked like any other input: its paths stay inside
the artifact, its digests are digests, and a file too large to be a manifest is not read.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from cft_ray.storage.root import Storage

MANIFEST = "manifest.json"
LARGEST = 16 * 2**20
"""bytes; a manifest of 100,000 files has about 12 MiB"""

_FOLDER = re.compile(r"([0-9]{4,9})-[0-9a-f]{8}")
KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")


class BadManifest(Exception):
    """A manifest that cannot be one: not JSON, wrong types, a path that leaves the artifact, another fingerprint."""


def inside(path: str) -> str:
    """The path, if it is a plain relative one that stays below its folder; a validator of pydantic's kind."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or str(PurePosixPath(path)) != path:
        raise ValueError("not a plain relative path")
    if any(part in ("..", ".") for part in parts):
        raise ValueError("leaves its folder")
    return path


def _listed(path: str) -> str:
    if path == MANIFEST:
        raise ValueError("the manifest does not list itself")
    return inside(path)


Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ArtifactFile(BaseModel):
    """One file of an artifact; ``path`` is relative, with ``/``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    path: Annotated[str, AfterValidator(_listed)]
    size: int = Field(ge=0, description="bytes")
    sha256: Digest


class Manifest(BaseModel):
    """What is known of an artifact without opening its files."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    fingerprint: Digest
    kind: Annotated[str, StringConstraints(pattern=f"^{KIND.pattern}$")]
    version: int = Field(description="the kind's version number when it was made")
    settings: dict[str, Any] = Field(description="the spec's identity, for telling why another stage differs")
    inputs: dict[str, Digest] = Field(description="role -> fingerprint")
    label: str = ""
    outputs: dict[str, Any] = Field(default_factory=dict, description="what the stage returned")
    files: list[ArtifactFile]
    rows: dict[str, int] = Field(default_factory=dict, description="table -> rows in `tables/{table}.parquet`")
    created: str = Field(description="ISO 8601, UTC")
    folder: Annotated[str, StringConstraints(pattern=r"^([0-9]{4,9}-[0-9a-f]{8})?$")] = Field(
        default="", description="of the files, beside the manifest; empty: they lie beside it themselves, as they once did"
    )
    attempt: int = Field(ge=1, description="the attempt that made it: its rows are in the tables under this number")
    seconds: float = Field(ge=0, description="of the attempt that made it")
    versions: dict[str, str] = Field(default_factory=dict, description="of the libraries that made it")

    @model_validator(mode="after")
    def _no_path_twice(self) -> "Manifest":
        if len({file.path for file in self.files}) != len(self.files):
            raise ValueError("a path is listed twice")
        return self

    def encode(self) -> bytes:
        """The JSON that is stored."""
        return self.model_dump_json(indent=1).encode()


def decode(data: bytes, kind: str, fingerprint: str) -> Manifest:
    """The manifest of one artifact.

    Raises:
        BadManifest: it is damaged, hostile, or belongs to another artifact.
    """
    if len(data) > LARGEST:
        raise BadManifest(f"{kind}/{fingerprint}: {len(data)} bytes are no manifest")
    try:
        manifest = Manifest.model_validate_json(data)
    except (ValidationError, RecursionError) as error:
        raise BadManifest(f"{kind}/{fingerprint}: {str(error).splitlines()[0]}") from error
    if (manifest.kind, manifest.fingerprint) != (kind, fingerprint):
        raise BadManifest(f"{kind}/{fingerprint}: the manifest is that of {manifest.kind}/{manifest.fingerprint}")
    return manifest


def read_manifest(storage: Storage, kind: str, fingerprint: str) -> Manifest | None:
    """The manifest of an artifact; None where there is none.

    Raises:
        BadManifest: it is damaged, hostile, too large, or belongs to another artifact.
    """
    try:
        data = storage.read("artifacts", kind, fingerprint, MANIFEST, limit=LARGEST)
    except ValueError as error:
        raise BadManifest(str(error)) from error
    return None if data is None else decode(data, kind, fingerprint)


def describe_files(folder: Path) -> list[ArtifactFile]:
    """Size and SHA-256 of every file below a local folder, sorted by path; hashed in threads."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(file_digest, paths)
        return [
            ArtifactFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=digest)
            for path, digest in zip(paths, digests, strict=True)
        ]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def folder_name(attempt: int) -> str:
    """A name for the files of an attempt that no other attempt has."""
    return f"{attempt:04d}-{os.urandom(4).hex()}"


def attempt_of(folder: str) -> int | None:
    """The attempt that a folder of files is of; None: it is no such folder."""
    found = _FOLDER.fullmatch(folder)
    return int(found[1]) if found else None


def table_files(files: Iterable[ArtifactFile]) -> dict[str, str]:
    """Table name -> path, for the files in ``tables/``."""
    found = (PurePosixPath(file.path) for file in files)
    return {path.stem: str(path) for path in found if path.parent == PurePosixPath("tables") and path.suffix == ".parquet"}
