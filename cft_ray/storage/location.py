"""What a place may be called: a path of this machine, ``file://``, ``s3://BUCKET/…`` or ``gs://BUCKET/…``; judged here alone."""

import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

from cft_ray.errors import UserError

SCHEMES = ("file", "s3", "gs", "gcs")
WANTED = "a folder or file, s3://BUCKET/… or gs://BUCKET/…"
OTHER = (
    *("dbfs", "hdfs", "viewfs", "abfs", "abfss", "az", "azure", "wasb", "wasbs", "adl", "oss"),
    *("http", "https", "hf", "s3a", "s3n", "ftp", "sftp"),
)
"""Schemes of places that cannot be reached here; with a colon alone they are refused too, as folders are never called so."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_OPTIONS = re.compile(r"\?(\w+=[^/]*)?$")


def is_uri(text: str) -> bool:
    """Whether a place is on another file system (``s3://…``); ``file://`` is this machine's."""
    return "://" in text and not text.startswith("file://")


def local_path(text: str) -> Path:
    """A path of this machine, absolute, so that it means the same wherever a stage runs on it.

    Raises:
        UserError: as `understood`.
    """
    return Path(understood(text)[2])


def understood(text: str) -> tuple[str, str, str]:
    """Scheme, bucket and path of a place: its form only, whether something is there is another question.

    Args:
        text: a path (a relative one is taken from the working directory) or a URI. The path of a bucket's URI is the object's
            name as it is, without quoting.

    Returns:
        ``("file", "", absolute path)``, or ``("s3" | "gs", bucket, path without slashes at its ends)``.

    Raises:
        UserError: it is empty, of an unknown scheme, without a bucket, carries credentials or options, or has characters
            that no place has.
    """
    if not text.strip():
        raise UserError("the place is empty", fix=WANTED)
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text):
        raise UserError("a place has no line breaks or control characters", where=ascii(text), fix=WANTED)
    scheme, separator, rest = text.partition("://")
    if not separator:
        _refuse_misspelt(text)
        return "file", "", _folder(text)
    if scheme not in SCHEMES:
        raise UserError(f"unknown scheme {scheme!r}", where=text, fix=WANTED)
    bucket, _, path = rest.partition("/")
    if scheme == "file":
        if bucket not in ("", "localhost") or not rest:
            raise UserError("this is no file's URI", where=text, fix="file:///FOLDER, or the folder itself")
        return "file", "", _folder(unquote(f"/{path}"))
    if "@" in bucket:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"
        raise UserError("the URI carries credentials, which would end up in records and logs", where=scheme, fix=fix)
    if _OPTIONS.search(rest):
        raise UserError("options in a URI are not supported", where=text, fix="set AWS_ENDPOINT_URL, AWS_REGION …")
    if not bucket:
        raise UserError("it names no bucket", where=text, fix=WANTED)
    if not _BUCKET.fullmatch(bucket):
        fix = "letters, digits, dots, dashes and underscores"
        raise UserError(f"{bucket!r} cannot be a bucket's name", where=text, fix=fix)
    if "//" in f"/{path}":
        raise UserError("its path has an empty part (`//`)", where=text, fix="write each `/` once")
    if {".", ".."} & set(path.split("/")):
        raise UserError("its path has a part `.` or `..`, which a bucket does not know", where=text, fix="write the path out")
    return "gs" if scheme == "gcs" else scheme, bucket, path.strip("/")


def _refuse_misspelt(text: str) -> None:
    """Refuse a URI without its `//`."""
    found = _SCHEME.fullmatch(text)
    if found and (found[2].startswith("/") or found[1].lower() in (*SCHEMES, *OTHER)):
        known, rest = found[1].lower() in SCHEMES and found[1] != "file", found[2].lstrip("/")
        fix = f"{found[1].lower()}://{rest}" if known and rest else WANTED
        raise UserError(f"`{found[1]}:` begins neither a path nor a URI", where=text, fix=fix)


def _folder(text: str) -> str:
    try:
        return str(Path(text).expanduser().absolute()).rstrip("/") or "/"
    except RuntimeError:
        user = text[1:].partition("/")[0]
        what = f"there is no user {user!r} on this machine" if user else "this user has no home directory"
        raise UserError(what, where=text, fix="a path without `~`, or `./~…`") from None
