"""nltk's sentence tokenizer (punkt_tab), without which IFEval's checkers cannot count sentences and words.

The harness downloads it when its IFEval module is imported, and goes on without it where the download fails, so that
scoring fails long after the answers were paid for. Here it is looked for before anything is loaded.
"""

import os
from hashlib import sha256

from cft_ray.errors import UserError
from cft_ray.storage.cache import Kept, keep
from cft_ray.storage.root import Storage

NEEDED = "tokenizers/punkt_tab"
_KEPT: dict[str, Kept] = {}
"""nltk looks into its folders for as long as the process lives"""


def needs_punkt(tasks: list[str]) -> bool:
    """Whether one of the harness tasks is IFEval, in whatever language."""
    return any("ifeval" in task for task in tasks)


def require_punkt(folder: str | None = None) -> None:
    """Make nltk find punkt_tab: in a folder that the grid names, where nltk looks itself, or by downloading it.

    Args:
        folder: folder or URI with ``tokenizers/punkt_tab``.

    Raises:
        UserError: it is nowhere, and cannot be downloaded.
    """
    import nltk

    if folder is not None:
        local = _local(folder)
        if local not in nltk.data.path:
            nltk.data.path.insert(0, local)
    if _found():
        return
    if folder is None and not os.environ.get("HF_HUB_OFFLINE"):
        nltk.download("punkt_tab", quiet=True)
        if _found():
            return
    raise UserError(
        f"nltk's data has no {NEEDED}, which IFEval's checks need",
        where=folder or "nltk",
        fix="on a machine with internet `python -m nltk.downloader -d FOLDER punkt_tab`, then --set "
        "evaluation.nltk_data=FOLDER (or a URI of its copy), or NLTK_DATA=FOLDER on every machine",
    )


def _found() -> bool:
    import nltk

    try:
        nltk.data.find(f"{NEEDED}/english")
    except LookupError:
        return False
    return True


def _local(folder: str) -> str:
    storage = Storage(folder)
    if storage.local:
        return storage.root
    key = sha256(f"{storage.uri}\n{storage.list(*NEEDED.split('/'), recursive=True)}".encode()).hexdigest()[:32]
    kept = keep("nltk", key, lambda target: storage.mirror(target.joinpath(*NEEDED.split("/")), *NEEDED.split("/")))
    _KEPT[key] = kept
    return str(kept.path)
