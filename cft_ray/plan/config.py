"""What the ``config.json`` of a model's local folder says, read as plain JSON while planning."""

import json
from pathlib import Path
from typing import Any

from cft_ray.errors import UserError

_LARGEST = 16 * 2**20


def local_config(folder: str | Path, *, where: str | None = None) -> dict[str, Any] | None:
    """The values of a folder's ``config.json``; None where there is none.

    Args:
        folder: of a Hugging Face model.
        where: place in the grid, for messages; None: the file.

    Raises:
        UserError: it is no JSON object: broken, too deep, numbers that no computer counts with, not UTF-8.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        return None
    fix = "a folder written by save_pretrained; fetch or write it again"
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"{file.stat().st_size:,} bytes are too many")
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"the model's {file} cannot be read ({error})", where=where or str(file), fix=fix) from None
    if not isinstance(values, dict):
        raise UserError(f"the model's {file} holds a {type(values).__name__}, not an object", where=where or str(file), fix=fix)
    return values
