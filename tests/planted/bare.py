"""A machine that has little installed: run a script in a Python that finds only the given distributions' modules.

    python bare.py there,with,dependencies packed,without script arguments…

Modules of other installed distributions are absent, as a plain `ImportError`; the standard library, the script's own folder and
the checkout are there.
"""

import importlib.metadata
import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any


class Absent(MetaPathFinder):
    """Refuses what the given distributions do not bring."""

    def __init__(self, there: set[str]) -> None:
        def canonical(name: str) -> str:
            return name.lower().replace("_", "-").replace(".", "-")

        owners = importlib.metadata.packages_distributions()
        self._absent = {module for module, names in owners.items() if not there & {canonical(name) for name in names}}

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if path is None and name.partition(".")[0] in self._absent - {"cft_ray"}:
            raise ModuleNotFoundError(f"No module named {name!r} on a bare machine", name=name)


def closure(roots: Sequence[str]) -> set[str]:
    """Distributions with all that they cannot be without."""
    import re

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
    sys.meta_path.insert(0, Absent(closure(bare.split(",")) | set(packed.split(","))))
    sys.argv = argv
    sys.path[0] = argv[0].rpartition("/")[0]
    runpy.run_path(argv[0], run_name="__main__")
