"""A machine that has little installed: run a script in a Python that finds only the given distributions' modules.

    python bare.py there,with,dependencies packed,without script arguments…

Modules of other installed distributions are absent, as a plain `ImportError`; the standard library, the script's own folder and
the checkout are there.
"""

import importlib.metadata
import re
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import ClassVar


class Present(PathFinder):
    """Finds what is not absent; what is absent is not found at all, so that those who look before they import see it too."""

    absent: ClassVar[set[str]] = set()

    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As `PathFinder`."""
        return None if path is None and fullname in cls.absent else PathFinder.find_spec(fullname, path, target)


def others(there: set[str]) -> set[str]:
    """Top-level modules that no distribution of these brings."""

    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name.lower())

    owners = importlib.metadata.packages_distributions()
    return {module for module, names in owners.items() if not there & set(map(canonical, names))} - {"cft_ray"}


def closure(roots: Sequence[str]) -> set[str]:
    """Distributions with all that they cannot be without."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop().lower())
        if name in found:
            continue
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [re.split(r"[\s;<>=!~\[(]", need, maxsplit=1)[0] for need in needs if "extra ==" not in need]
    return found


if __name__ == "__main__":
    bare, packed, *argv = sys.argv[1:]
    # What is bare comes with its dependencies; what is packed is a full list by itself.
    Present.absent = others(closure(bare.split(",")) | set(packed.split(",")))
    sys.meta_path[sys.meta_path.index(PathFinder)] = Present
    sys.argv = argv
    sys.path[0] = argv[0].rpartition("/")[0]
    runpy.run_path(argv[0], run_name="__main__")
