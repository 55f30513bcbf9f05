"""What `cft-ray init` puts into a folder: a commented grid that runs as it is, and a cluster to run larger ones on."""

from importlib.resources import files
from pathlib import Path

from cft_ray.errors import UserError
from cft_ray.storage.local import write_local

CHECKOUT = "/home/ubuntu/cft-ray: ."
"""the line of cluster.yaml that says which folder is the project"""


def write(folder: Path) -> list[Path]:
    """Write ``grid.yaml`` and ``cluster.yaml``.

    Args:
        folder: is made if it does not exist.

    Returns:
        The paths of the two files.

    Raises:
        UserError: one of them is there already, or the folder cannot be written to.
    """
    texts = {folder / "grid.yaml": _text("starter", "grid.yaml"), folder / "cluster.yaml": _cluster()}
    for path in texts:
        if path.exists():
            raise UserError("is there already", where=str(path), fix="another folder, or move the file away")
    try:
        for path, text in texts.items():
            write_local(path, text.encode())
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(folder), fix="take a writable folder") from error
    return list(texts)


def _cluster() -> str:
    """The cluster file, naming the checkout that runs now: machines of a cluster get a copy of it."""
    checkout = Path(__file__).resolve().parents[2]
    text = _text("cluster", "cluster.yaml")
    return text.replace(CHECKOUT, CHECKOUT[:-1] + str(checkout)) if (checkout / "pyproject.toml").exists() else text


def _text(room: str, name: str) -> str:
    return (files("cft_ray") / room / name).read_text(encoding="utf-8")
