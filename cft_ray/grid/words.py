"""Words of a grid that have a form: names, hub ids, revisions, places, seeds and counts, as annotated types.

Each refuses what cannot be one while the file is read, before anything is asked of a hub or a storage. Pure.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from cft_ray.errors import UserError
from cft_ray.storage.location import understood

MOST = 1_000_000_000
"""Of anything that is counted (rows, tokens, steps); more is a slip of the finger."""
MOST_WORKERS = 10_000
LARGEST_SEED = 2**32 - 1
"""What every random number generator in use takes."""

NAME = r"^[^\s/\\→*?\[\]=,:]+$"
_REPOSITORY = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_NO_REVISION = re.compile(r"[\s~^:?*\[\\\x00-\x1f\x7f]|\.\.|@\{|//|^[-/.]|[/.]$|\.lock$|/\.")


def wrong(what: str, fix: str) -> PydanticCustomError:
    """What a validator raises: ``what`` was found, and ``fix`` would be right; `cft_ray.grid.problems` says both."""
    return PydanticCustomError("cft_ray", "{what}: {fix}", {"what": what, "fix": fix})


def shorthand(key: str, model: type[Any]) -> BeforeValidator:
    """A bare value stands for a mapping with this key; ``model``: of the mapping, for the JSON Schema."""
    return BeforeValidator(
        lambda value: {key: value} if isinstance(value, str | int) else value, json_schema_input_type=str | int | model
    )


def _name(text: str) -> str:
    fix = "a name of printable characters without spaces, slashes, brackets, commas, colons, = and *"
    if text in (".", ".."):
        raise wrong(f"{text!r} cannot be a name: it is a folder's", fix)
    if not text.isprintable():
        raise wrong(f"{text!a} cannot be a name: it has characters that cannot be seen", fix)
    if len(text.encode()) > 200:
        raise wrong(f"{text[:20]!r}… cannot be a name: files are named after it", "at most 200 bytes")
    return text


def _repository(text: str) -> str:
    fix = "OWNER/NAME as on the hub; a folder of yours is given by `path` or `files`"
    if not _REPOSITORY.fullmatch(text) or len(text) > 96 or "--" in text or ".." in text or text.endswith((".git", "-", ".")):
        raise wrong(f"{text!r} is no id of the Hugging Face hub", fix)
    return text


def _revision(text: str) -> str:
    if not text or len(text) > 255 or _NO_REVISION.search(text):
        raise wrong(f"{text!r} is no revision", "a commit, tag or branch of the repository")
    return text


def _language(text: str) -> str:
    if not _LANGUAGE.fullmatch(text):
        raise wrong(f"{text!r} is no code of a language", "an ISO 639-1 code in small letters, e.g. de")
    return text


def _place(text: str) -> str:
    """A folder, file or URI: its form only, whether it is there is another question."""
    try:
        understood(text)
    except UserError as error:
        raise wrong(f"{error.where}: {error.what}" if error.where else error.what, error.fix or "") from None
    return text


Name = Annotated[str, Field(pattern=NAME, max_length=100), AfterValidator(_name)]
Repository = Annotated[str, AfterValidator(_repository)]
Revision = Annotated[str, AfterValidator(_revision)]
Language = Annotated[str, AfterValidator(_language)]
PlaceName = Annotated[str, AfterValidator(_place)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
