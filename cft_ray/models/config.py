"""The configuration of a model in a folder, as transformers reads it; for those who must not import torch yet."""

from pathlib import Path
from typing import Any

from cft_ray.errors import UserError
from cft_ray.models.limits import positions_of


def read_config(folder: str) -> Any:
    """The transformers configuration of a local Hugging Face folder.

    Raises:
        UserError: the folder is no model that transformers knows.
    """
    from transformers import AutoConfig

    if not Path(folder).is_dir():
        raise UserError("there is no such folder", where=folder, fix="give the folder of a Hugging Face model")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"not a Hugging Face model ({error})", where=folder, fix="give a folder with a valid config.json"
        ) from error


def positions(config: Any) -> int | None:
    """Tokens of the longest text; what ``config.json`` leaves out counts as transformers fills it in. None: no limit is known.

    Args:
        config: as `read_config` gives it.
    """
    return positions_of(config.get_text_config().to_dict())
