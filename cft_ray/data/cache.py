"""Small facts about local files that are slow to find out, kept in the user's cache folder; may be deleted at any time."""

import contextlib
import json
import os
from pathlib import Path

from cft_ray.machine import machine_folder


class FileCache:
    """Text by key, read once and written by `save`.

    Args:
        name: of the file in `machine_folder`.
        file: another file.
    """

    def __init__(self, name: str, file: Path | None = None) -> None:
        self.file = file or machine_folder(name)
        self._known: dict[str, str] | None = None
        self._changed = False

    def get(self, key: str) -> str | None:
        """What is known under a key; None: nothing."""
        return self._load().get(key)

    def put(self, key: str, text: str) -> None:
        """Note something; it is written by `save`."""
        self._load()[key] = text
        self._changed = True

    def save(self) -> None:
        """Write the cache, if it grew. A cache that cannot be written costs time, nothing else."""
        if not self._changed:
            return
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_name(f".{self.file.name}-{os.urandom(6).hex()}")
            with temporary.open("x", encoding="utf-8") as opened:  # with the rights that the umask leaves
                json.dump(self._known, opened)
            temporary.replace(self.file)
            self._changed = False

    def _load(self) -> dict[str, str]:
        if self._known is None:
            try:
                values = json.loads(self.file.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                values = {}
            self._known = {str(k): str(v) for k, v in values.items()} if isinstance(values, dict) else {}
        return self._known
