"""nltk's sentence tokenizer (punkt_tab) to where `evaluation.nltk_data` can point: IFEval's checks count sentences with it.

Taken from this machine's nltk data where it is there (``NLTK_DATA``), else downloaded by nltk.
"""

import tempfile
from pathlib import Path

from cft_ray.artifacts.fetched import NLTK, Fetched
from cft_ray.errors import UserError
from cft_ray.storage.root import Storage

PUNKT = "tokenizers/punkt_tab"


def copy_punkt(fetched: Fetched, index: str | None = None) -> int:
    """Bring punkt_tab to where `fetched` keeps it.

    Args:
        fetched: where to.
        index: URL of nltk's index of packages; none: nltk's own.

    Returns:
        Files copied now; 0: all were there.

    Raises:
        UserError: it is not on this machine and cannot be downloaded, or the storage cannot be written to.
    """
    storage, marker = fetched.storage, (NLTK, f"{PUNKT.rpartition('/')[2]}.complete")
    if storage.size(*marker) is not None:
        return 0
    found = _installed()
    if found is not None:
        return _copy(found, storage, marker)
    with tempfile.TemporaryDirectory() as folder:
        return _copy(_downloaded(Path(folder), index), storage, marker)


def _installed() -> Path | None:
    import nltk

    try:
        return Path(str(nltk.data.find(f"{PUNKT}/english"))).parent
    except LookupError:
        return None


def _downloaded(folder: Path, index: str | None) -> Path:
    from nltk.downloader import Downloader

    try:
        whole = Downloader(index, str(folder)).download("punkt_tab", quiet=True, raise_on_error=True)
    except (OSError, ValueError) as error:  # nltk's own are ValueErrors
        whole, reason = False, f" ({type(error).__name__})"
    else:
        reason = ""
    if not whole or not (folder / PUNKT / "english").is_dir():
        raise UserError(
            f"nltk's punkt_tab, which ifeval needs, cannot be downloaded{reason}",
            where="nltk",
            fix="check the network (nltk uses no proxy unless NLTK_ALLOW_PROXIED_URLOPEN=1); or put it on this machine by other "
            "means and set NLTK_DATA",
        )
    return folder / PUNKT


def _copy(source: Path, storage: Storage, marker: tuple[str, str]) -> int:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        storage.write(NLTK, *PUNKT.split("/"), *path.relative_to(source).parts, data=path.read_bytes())
    storage.write(*marker, data=b"")  # written last: everything is there
    return len(files)
