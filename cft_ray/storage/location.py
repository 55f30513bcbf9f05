"""What a storage may be called: a folder, ``file://``, ``s3://BUCKET/…`` or ``gs://BUCKET/…``."""

import re
from pathlib import Path
from urllib.parse import unquote

from cft_ray.errors import UserError

SCHEMES = ("file", "s3", "gs", "gcs")
WANTED = "use a folder, s3://BUCKET/… or gs://BUCKET/…"
OTHER = (
    *("dbfs", "hdfs", "viewfs", "abfs", "abfss", "az", "azure", "wasb", "wasbs", "adl", "oss"),
    *("http", "https", "hf", "s3a", "s3n", "ftp", "sftp"),
)
"""Schemes of places that are no storage here; with a colon alone they are refused too, as folders are never called so."""
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)


def understood(text: str) -> tuple[str, str, str]:
    """Scheme, bucket and path of a storage.

    Args:
        text: a folder (relative ones are taken from the working directory) or a URI.

    Returns:
        ``("file", "", absolute path)``, or ``("s3" | "gs", bucket, path without slashes at its ends)``.

    Raises:
        UserError: it is empty, of an unknown scheme, without a bucket, or carries credentials or options.
    """
    if not text.strip():
        raise UserError("the storage is empty", where="storage.uri", fix=WANTED)
    scheme, separator, rest = text.partition("://")
    if not separator:
        found = SCHEME.fullmatch(text)
        if found and (found[2].startswith("/") or found[1].lower() in (*SCHEMES, *OTHER)):
            known = found[1].lower() in SCHEMES
            fix = f"{found[1].lower()}://{found[2].lstrip('/')}" if known and found[1] != "file" else WANTED
            raise UserError(f"`{found[1]}:` begins neither a folder nor a URI", where=text, fix=fix)
        return "file", "", _folder(text)
    if scheme not in SCHEMES:
        raise UserError(f"unknown storage scheme {scheme!r}", where=text, fix=WANTED)
    bucket, _, path = rest.partition("/")
    if "@" in bucket:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"
        raise UserError("the storage URI carries credentials, which would end up in records and logs", where=scheme, fix=fix)
    if "?" in text:
        raise UserError("options in a storage URI are not supported", where=text, fix="set AWS_ENDPOINT_URL, AWS_REGION …")
    if scheme == "file":
        if bucket not in ("", "localhost"):
            raise UserError("a file URI names no machine", where=text, fix="file:///folder, or the folder alone")
        return "file", "", _folder(unquote(f"/{path}"))
    if not bucket:
        raise UserError("the storage names no bucket", where=text, fix=WANTED)
    if "//" in f"/{path}":
        raise UserError("the storage's path has an empty part (`//`)", where=text, fix="write each `/` once")
    if {".", ".."} & set(path.split("/")):
        raise UserError("the storage's path has a part `.` or `..`", where=text, fix="write the path as it is in the bucket")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UserError("the storage's path has a control character", where=ascii(text), fix="write the path without it")
    return "gs" if scheme == "gcs" else scheme, bucket, path.strip("/")


def _folder(text: str) -> str:
    try:
        return str(Path(text).expanduser().absolute()).rstrip("/") or "/"
    except RuntimeError as error:  # `~user` where there is no such user
        raise UserError(f"the storage cannot be opened: {error}", where=text, fix="check the path") from error
