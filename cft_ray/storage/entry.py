"""What a listing says of a file or folder, and what identifies one state of a file."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Entry:
    """Something that lies in a folder of a storage.

    Args:
        name: path below the folder that was listed.
        size: bytes of a file; None: this is a folder.
        changed: when; None: unknown, or a folder of an object store.
        tag: of the file's state, where the storage gives one with its listing.
    """

    name: str
    size: int | None
    changed: datetime | None = None
    tag: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a file; else it is a folder."""
        return self.size is not None


@dataclass(frozen=True)
class Version:
    """One state of a file: what `put_if_unchanged` compares. S3 knows it by its tag, Google by its generation."""

    tag: str | None
    generation: str | None = None
