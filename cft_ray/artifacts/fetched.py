"""What `cft-ray fetch` leaves for machines that do not reach the Hugging Face hub: where it lies, and what is whole.

    {root}/{models|datasets}/{owner}--{name}/{part}@{revision}.json     manifest, written last
    {root}/{models|datasets}/{owner}--{name}/{commit}/{part}/…          the files
    {root}/nltk_data/…                                                  what nltk would download

A *part* is what a grid asks of a repository: a model, or the files of one split of a data set (a folder a language, where
it has such). Its manifest is found under the revision that the grid names and says which commit that was, so that a plan
knows hub content by its commit, and where it lies is no part of that. Read while planning: no hub client, no Ray.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from cft_ray.artifacts.manifest import Digest, inside
from cft_ray.data.languages import filled, names_language
from cft_ray.errors import UserError
from cft_ray.storage.root import Storage

LARGEST = 16 * 2**20
"""bytes of a manifest"""
NLTK = "nltk_data"


@dataclass(frozen=True)
class Part:
    """What a grid asks of one hub repository.

    Args:
        repository: ``owner/name``.
        kind: of the repository.
        revision: commit, tag or branch as the grid names it; None: the newest.
        config: a data set's configuration, ``{language}`` and ``{flores}`` allowed.
        split: a data set's split; None where ``pattern`` says which files.
        pattern: of file names in the repository, ``{language}``, ``{flores}`` and ``*`` allowed.
        languages: ISO 639-1 codes, for ``{language}``; without meaning where there is none.
        names: language -> what stands for ``{language}`` where that is not the code.
    """

    repository: str
    kind: Literal["model", "dataset"]
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    pattern: str | None = None
    languages: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def by_language(self) -> bool:
        """Whether each language has files of its own."""
        return names_language(f"{self.config}{self.pattern}")

    @property
    def folders(self) -> tuple[str, ...]:
        """Languages that have files of their own."""
        return self.languages if self.by_language else ()

    @property
    def name(self) -> str:
        """Of the part inside its repository; the same whatever the languages."""
        if self.kind == "model":
            return "model"
        words = self.pattern or f"{self.config or 'default'}.{self.split}"
        distinct = sha256(f"{self.config}\0{self.split}\0{self.pattern}".encode()).hexdigest()[:6]
        return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', words).strip('_.')}-{distinct}"

    def filled(self, text: str, language: str) -> str:
        """``config`` or ``pattern`` of one language."""
        return filled(text.replace("{language}", self.names.get(language, language)), language)

    def __str__(self) -> str:
        words = [] if self.kind == "model" else [self.pattern] if self.pattern else [self.config or "default", str(self.split)]
        what = f" ({', '.join(words)})" if words else ""
        return f"{self.kind} {self.repository}@{self.revision or 'main'}{what}"


class CopiedFile(BaseModel):
    """A file as it lies in the storage, and as it is called in the repository."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    path: Annotated[str, AfterValidator(inside)] = Field(description="below the part's folder")
    source: Annotated[str, AfterValidator(inside)] = Field(description="below the repository's root")
    size: int = Field(ge=0, description="bytes")
    sha256: Digest


class Copied(BaseModel):
    """The manifest of a part: it exists when all its files do."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    repository: str
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] = Field(description="the commit")
    converted: bool = Field(default=False, description="the commit is one of the hub's own conversion to Parquet")
    languages: list[str] = Field(default_factory=list)
    files: list[CopiedFile]
    fetched: str = Field(description="ISO 8601, UTC")


class Fetched:
    """A folder or bucket that `cft-ray fetch` fills.

    Args:
        uri: as for `Storage`.

    Raises:
        UserError: a URI that cannot be understood.
    """

    def __init__(self, uri: str) -> None:
        self.storage = Storage(uri)
        self._found: dict[tuple[str, ...], Copied] = {}

    def manifest_path(self, part: Part) -> tuple[str, ...]:
        """Parts of the path of a part's manifest."""
        return *self._repository(part), f"{part.name}@{quote(part.revision or 'main', safe='')}.json"

    def folder(self, part: Part, commit: str) -> tuple[str, ...]:
        """Parts of the path of the folder of a part's files."""
        return *self._repository(part), commit, part.name

    def read(self, part: Part) -> Copied | None:
        """The manifest of a part; None where there is none.

        Raises:
            UserError: it is damaged.
        """
        path = self.manifest_path(part)
        try:
            data = self.storage.read(*path, limit=LARGEST)
            return None if data is None else Copied.model_validate_json(data)
        except (ValidationError, ValueError) as error:
            raise UserError(
                f"the manifest of {part} is damaged ({str(error).splitlines()[0]})",
                where=self.storage.location(*path),
                fix="delete it, and run `cft-ray fetch` again: files that are whole are kept",
            ) from None

    def find(self, part: Part, *, where: str) -> Copied:
        """The manifest of a part that a plan needs.

        Args:
            part: what is needed.
            where: place in the grid, for messages.

        Raises:
            UserError: it, or one of its languages, has not been fetched.
        """
        key = self.manifest_path(part)
        if key not in self._found:
            copied = self.read(part)
            if copied is None:
                raise self._absent(part, str(part), where)
            self._found[key] = copied
        copied = self._found[key]
        if absent := set(part.folders) - set(copied.languages):
            raise self._absent(part, f"{part}, language {min(absent)}", where)
        return copied

    def location(self, part: Part, commit: str) -> str:
        """Path or URI of a model's folder; of a data set's files, with ``*`` and ``{language}``."""
        folder = "/".join((self.storage.uri, *self.folder(part, commit)))
        if part.kind == "model":
            return folder
        return f"{folder}/{{language}}/*" if part.by_language else f"{folder}/*"

    @property
    def nltk_data(self) -> str:
        """Path or URI of nltk's data."""
        return f"{self.storage.uri}/{NLTK}"

    def _repository(self, part: Part) -> tuple[str, str]:
        return f"{part.kind}s", part.repository.replace("/", "--")

    def _absent(self, part: Part, what: str, where: str) -> UserError:
        return UserError(
            f"{what} has not been fetched to {self.storage.uri}",
            where=where,
            fix=f"where the hub can be reached: cft-ray fetch GRID --to {self.storage.uri}",
        )
