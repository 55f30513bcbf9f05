"""Patience: what is transient is tried again, with pauses that grow and differ, for as long as a setting says.

The setting is ``CFT_RAY_STORAGE_PATIENCE``, seconds, by default ten minutes. Whoever waits says so: to the log, or to whom
`telling` names.
"""

import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

VARIABLE = "CFT_RAY_STORAGE_PATIENCE"
PATIENCE = 600.0
"""seconds, unless the variable says otherwise"""
FIRST, LONGEST = 0.2, 15.0
"""seconds: bounds of the pauses"""
FIRST_LOOK = 20.0
"""seconds for a storage that has never answered this process: see `impatient`"""
QUIET, AGAIN = 3.0, 30.0
"""seconds of waiting before it is told, and between two tellings"""
T = TypeVar("T")


def _log(text: str) -> None:
    logging.getLogger("cft_ray.storage").warning(text)


_tell: Callable[[str], None] = _log
_impatient = False
_heard: set[str] = set()


def impatient() -> None:
    """From now on, this process waits for a storage that it has not heard of yet for `FIRST_LOOK` seconds at most.

    For the command line: a storage that does not answer there at first is rather a wrong address than one that stutters.
    """
    global _impatient
    _impatient = True


@contextlib.contextmanager
def telling(listener: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, `listener` is told when this process waits for a storage."""
    global _tell
    before, _tell = _tell, listener
    try:
        yield
    finally:
        _tell = before


def patience() -> float:
    """Seconds for which a storage that does not answer is asked again."""
    try:
        return max(0.0, float(os.environ[VARIABLE]))
    except (KeyError, ValueError):
        return PATIENCE


def patiently(
    call: Callable[[], T],
    transient: Callable[[Exception], bool],
    *,
    where: str,
    seconds: float | None = None,
    words: "Callable[[Exception], str] | None" = None,
    asked: "Callable[[Exception], float] | None" = None,
) -> T:
    """What ``call`` returns, once it does.

    Args:
        call: what is tried; trying it again must be harmless.
        transient: whether an error may pass by itself.
        where: the storage, for the telling.
        seconds: how long at most; None: `patience`.
        words: an error in words, for the telling; None: its first line.
        asked: seconds that an error asks to wait before the next try; None: none does.

    Raises:
        Exception: the last error of ``call``: one that is not transient, or is so for too long.
    """
    most = patience() if seconds is None else seconds
    limit = min(most, FIRST_LOOK) if _impatient and where not in _heard else most
    begun = time.monotonic()
    told = begun + QUIET - AGAIN
    ceiling = FIRST
    while True:
        try:
            answer = call()
        except Exception as error:
            waited = time.monotonic() - begun
            if not transient(error):
                _heard.add(where)  # a refusal is an answer
                raise
            least = asked(error) if asked is not None else 0.0
            if least:
                _heard.add(where)
                limit = most
            if waited >= limit or waited + least > limit:
                raise
            if time.monotonic() - told >= AGAIN:
                told = time.monotonic()
                _tell(f"{where} does not answer ({(words or reason)(error)}); trying again for {_words(limit - waited)} more")
        else:
            _heard.add(where)
            return answer
        # All of the pause is drawn by lot, so that processes that failed together do not come back together.
        pause = least + random.uniform(0, ceiling)
        time.sleep(max(least, min(pause, limit - (time.monotonic() - begun))))
        ceiling = min(LONGEST, 2 * ceiling)


def reason(error: BaseException) -> str:
    """The first line of what went wrong."""
    text = getattr(error, "strerror", None) or str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)


def _words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
