"""The Hugging Face hub: asked with the same patience as a storage, and its refusals in words.

5xx, 429 (with the pause that it asks for), time-outs and lost connections are tried again for as long as
``CFT_RAY_STORAGE_PATIENCE`` says; a file that was cut goes on where its client had got to. What the hub refuses is final, and
said once. Its own texts and its client's are left out: they may hold signed URLs.
"""

import os
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from time import time
from typing import TypeVar

from cft_ray.errors import UserError
from cft_ray.storage.errors import Unavailable
from cft_ray.storage.retry import patiently

T = TypeVar("T")
COPY = "`fetched`, `path` or `files`"
_AGAIN = "check the network, and run the command again: what is there is kept"
_PASSES = (408, 425, 429)
"""with 5xx, the answers that pass by themselves"""
_LOST = (ConnectionError, TimeoutError)


def endpoint() -> str:
    """Where the hub is: ``HF_ENDPOINT``, or the public one."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids to ask the hub: its client and `datasets` say so in many ways."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def from_hub(what: str, call: Callable[[], T], *, instead: str = COPY, seconds: float | None = None) -> T:
    """What a call of the hub's client returns, once it does.

    Args:
        what: is asked for: a repository, or a part of one; for messages.
        call: asks; asking again must be harmless.
        instead: where a grid may name a copy, for messages.
        seconds: how long at most; None: as `cft_ray.storage.retry.patience`.

    Raises:
        Unavailable: the hub does not answer, or cannot now.
        UserError: it refuses, or what it gives cannot be kept here.
        Exception: what ``call`` raised of another sort.
    """
    try:
        return patiently(
            call,
            lambda error: transient(error) and not offline(),
            where=f"the hub {endpoint()}",
            seconds=seconds,
            words=_short,
            asked=_asked_pause,
        )
    except UserError:
        raise
    except Exception as error:
        refusal = _forbidden(what, instead) if offline() and transient(error) else refused(error, what, instead)
        if refusal is None:
            raise
        raise refusal from None


def transient(error: BaseException) -> bool:
    """Whether an error of the hub's client may pass by itself."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    causes = list(_causes(error))
    if isinstance(error, UserError) or any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return False  # it has been judged, or nobody is to be asked
    for cause in causes:
        if isinstance(cause, HfHubHTTPError | httpx.HTTPStatusError):
            status = cause.response.status_code
            return status in _PASSES or (status >= 500 and status != 501)
        if isinstance(cause, httpx.TransportError):
            return not isinstance(cause, httpx.UnsupportedProtocol)
        if isinstance(cause, OSError) and not isinstance(cause, _LOST):
            if "Consistency check failed" in str(cause):  # a file that was cut without a word
                return True
            if cause.errno is not None:  # of this machine, whatever was going on meanwhile
                return False
    return any(isinstance(cause, _LOST) for cause in causes)


def refused(error: BaseException, what: str, instead: str = COPY) -> UserError | None:
    """An error of the hub's client in words; None: it is none.

    Args:
        error: what the client raised.
        what: was asked for.
        instead: as of `from_hub`.
    """
    import httpx
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return _forbidden(what, instead)
    sort = Unavailable if transient(error) else UserError
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, _LOST):
            break  # of this machine, whatever was going on meanwhile
        if isinstance(cause, GatedRepoError):
            fix = "ask for access on its page, and set HF_TOKEN to a token of that account"
            return UserError("the hub gives it only to those who were granted access", where=what, fix=fix)
        if isinstance(cause, RepositoryNotFoundError):
            fix = "check its name; if it is private, set HF_TOKEN to a token that may read it"
            return UserError("the hub has no such repository, or hides it from you", where=what, fix=fix)
        if isinstance(cause, RevisionNotFoundError):
            return UserError("the repository has no such revision", where=what, fix="name a commit, tag or branch of it")
        if isinstance(cause, HFValidationError):
            return UserError("that is no repository's name", where=what, fix="owner/name")
        if isinstance(cause, HfHubHTTPError | httpx.HTTPStatusError):
            status = cause.response.status_code
            if status in (401, 403):
                fix = "set HF_TOKEN to a valid token that may read it"
                return UserError(f"the hub refuses access (HTTP {status})", where=what, fix=fix)
            if status == 404:
                return UserError("the hub has no such file (HTTP 404)", where=what, fix="look at the repository's files")
            return sort(f"the hub answers with HTTP {status}", where=what, fix=_AGAIN)
        if isinstance(cause, httpx.HTTPError | ConnectionError | TimeoutError):
            said = f"the hub cannot be reached, or the connection broke ({type(cause).__name__})"
            return sort(said, where=what, fix=_AGAIN)
    if isinstance(error, EntryNotFoundError):
        fix = f"look at the repository's files; where the hub cannot be reached, give a copy: {instead}"
        return UserError("neither the hub nor this machine's cache has it", where=what, fix=fix)
    if isinstance(error, OSError):
        if sort is Unavailable:
            return Unavailable("a file was cut on its way from the hub", where=what, fix=_AGAIN)
        reason = f"{type(error).__name__}: {error.strerror}" if error.strerror else type(error).__name__
        return UserError(f"cannot be fetched ({reason})", where=what, fix=f"free disk space? {_AGAIN}")
    return None


def _forbidden(what: str, instead: str) -> UserError:
    fix = f"unset it for this command, or give a copy: {instead}"
    return UserError("HF_HUB_OFFLINE forbids to ask the hub, and this machine's cache lacks it", where=what, fix=fix)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from: hub client and `datasets` say of many only that a file is not in their caches."""
    met: list[BaseException] = []
    here: BaseException | None = error
    while here is not None and here not in met:
        yield here
        met.append(here)
        here = here.__cause__ or here.__context__


def _short(error: Exception) -> str:
    """For the telling while it waits."""
    for cause in _causes(error):
        if (response := getattr(cause, "response", None)) is not None:
            return f"HTTP {response.status_code}"
    return type(list(_causes(error))[-1]).__name__


def _asked_pause(error: Exception) -> float:
    """Seconds that the hub asks to wait (``Retry-After``: seconds, or a date); 0: it does not."""
    for cause in _causes(error):
        text = getattr(getattr(cause, "response", None), "headers", {}).get("Retry-After")
        if text is None:
            continue
        try:
            return max(0.0, float(text) if text.strip().isdecimal() else parsedate_to_datetime(text).timestamp() - time())
        except ValueError:
            continue
    return 0.0
