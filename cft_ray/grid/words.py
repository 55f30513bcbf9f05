"""Words of a grid that have a form: names, hub ids, revisions, places, seeds and counts, as annotated types.

Each refuses what cannot be one while the file is read, before anything is asked of a hub or a storage. Pure.
"""

import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from cft_ray.storage.location import OTHER, SCHEME, SCHEMES

MOST = 1_000_000_000
"""Of anything that is counted (rows, tokens, steps); more is a slip of the finger."""
MOST_WORKERS = 10_000
LARGEST_SEED = 2**32 - 1
"""What every random number generator in use takes."""

NAME = r"^[^\s/\\→*?\[\]=,:]+$"
_REPOSITORY = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_NO_REVISION = re.compile(r"[\s~^:?*\[\\\x00-\x1f\x7f]|\.\.|@\{|//|^[-/.]|[/.]$|\.lock$|/\.")
_PLACE = "a folder or file, s3://BUCKET/… or gs://BUCKET/…"


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
    if not text.strip():
        raise wrong("the place is empty", _PLACE)
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text):
        raise wrong(f"{text!a} cannot be a place: it has line breaks or control characters", _PLACE)
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme not in SCHEMES:
            raise wrong(f"{text!r} has the unknown scheme {scheme!r}", _PLACE)
        if scheme == "file":
            if not rest.startswith("/"):
                raise wrong(f"{text!r} is no file's URI", "file:///FOLDER, or the folder itself")
            return text
        bucket, _, path = rest.partition("?")[0].partition("/")
        if "@" in bucket:
            fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"
            raise wrong("the URI carries credentials, which would end up in records and logs", fix)
        if not bucket:
            raise wrong(f"{text!r} names no bucket", _PLACE)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}", bucket):
            raise wrong(f"{bucket!r} cannot be a bucket's name", "letters, digits, dots, dashes and underscores")
        if "//" in f"/{path}":
            raise wrong(f"{text!r} has an empty part (`//`)", "write each `/` once")
        if {".", ".."} & set(path.split("/")):
            raise wrong(f"{text!r} has `.` or `..` in its path, which a bucket does not know", "write the path out")
        return text
    found = SCHEME.fullmatch(text)
    if found and (found[2].startswith("/") or found[1].lower() in SCHEMES or found[1].lower() in OTHER):
        known = found[1].lower() in SCHEMES and found[1] != "file"
        rest = found[2].lstrip("/")
        fix = f"{found[1].lower()}://{rest}" if known and rest else _PLACE
        raise wrong(f"{text!r}: `{found[1]}:` begins neither a path nor a URI", fix)
    if text.startswith("~"):
        _known_user(text)
    return text


def _known_user(text: str) -> None:
    user = text[1:].partition("/")[0]
    if not user:
        return
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        raise wrong(f"{text!r}: there is no user {user!r} on this machine", "a path without `~`, or `./~…`") from None


def _storage(text: str) -> str:
    _place(text)
    if "://" in text and "?" in text:
        raise wrong("options in a storage URI are not supported", "set AWS_ENDPOINT_URL, AWS_REGION …")
    return text


Name = Annotated[str, Field(pattern=NAME, max_length=100), AfterValidator(_name)]
Repository = Annotated[str, AfterValidator(_repository)]
Revision = Annotated[str, AfterValidator(_revision)]
Language = Annotated[str, AfterValidator(_language)]
PlaceName = Annotated[str, AfterValidator(_place)]
StorageUri = Annotated[str, AfterValidator(_storage)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
