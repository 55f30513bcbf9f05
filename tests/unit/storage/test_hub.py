"""What the hub's client raises: what passes by itself, and what is said of the rest."""

import errno
from email.utils import formatdate

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cft_ray.errors import UserError
from cft_ray.storage import hub, retry
from cft_ray.storage.errors import Unavailable
from cft_ray.storage.hub import from_hub, transient


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_where_nobody_is_to_be_asked_nothing_is_waited_for(monkeypatch):
    """As `datasets` says it there: a connection that could not be made."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = []

    def ask() -> None:
        asked.append(1)
        raise ConnectionError("Couldn't reach 'nobody/this' on the Hub")

    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        from_hub("nobody/this", ask, seconds=30)
    assert len(asked) == 1


def answered(status: int, sort: type[HfHubHTTPError] = HfHubHTTPError, after: str | None = None) -> HfHubHTTPError:
    request = httpx.Request("GET", "http://x/secret?Signature=secret")
    headers = {} if after is None else {"Retry-After": after}
    return sort("secret url", response=httpx.Response(status, request=request, headers=headers))


def from_(cause: BaseException, error: Exception) -> Exception:
    """An error that was raised from another one."""
    error.__cause__ = cause
    return error


def while_(context: BaseException, error: Exception) -> Exception:
    """An error that was raised while another one was handled, and hides it."""
    error.__context__, error.__suppress_context__ = context, True
    return error


ABSENT = "not in the cache: secret"


@pytest.mark.parametrize(
    ("error", "passes", "what"),
    [
        (answered(401), False, "refuses access (HTTP 401)"),
        (answered(403), False, "refuses access (HTTP 403)"),
        (answered(404), False, "no such file (HTTP 404)"),
        (answered(418), False, "answers with HTTP 418"),
        (answered(501), False, "answers with HTTP 501"),
        (answered(408), True, "answers with HTTP 408"),
        (answered(425), True, "answers with HTTP 425"),
        (answered(429), True, "answers with HTTP 429"),
        (answered(500), True, "answers with HTTP 500"),
        (answered(503), True, "answers with HTTP 503"),
        (answered(403, GatedRepoError), False, "granted access"),
        (answered(401, RepositoryNotFoundError), False, "no such repository"),
        (answered(404, RevisionNotFoundError), False, "no such revision"),
        (HFValidationError("x"), False, "no repository's name"),
        (OfflineModeIsEnabled("x"), False, "HF_HUB_OFFLINE"),
        (httpx.ConnectError("secret"), True, "the connection broke (ConnectError)"),
        (httpx.ReadTimeout("secret"), True, "the connection broke (ReadTimeout)"),
        (httpx.RemoteProtocolError("secret"), True, "the connection broke (RemoteProtocolError)"),
        (httpx.UnsupportedProtocol("secret"), False, "UnsupportedProtocol"),
        (ConnectionResetError("secret"), True, "the connection broke (ConnectionResetError)"),
        (TimeoutError("secret"), True, "the connection broke (TimeoutError)"),
        (OSError(errno.ENOSPC, "No space left"), False, "cannot be fetched (OSError: No space left)"),
        (OSError("x"), False, "cannot be fetched (OSError)"),
        (OSError("Consistency check failed: file should be of size 3 but has size 2 (secret)"), True, "was cut on its way"),
        (LocalEntryNotFoundError(ABSENT), False, "neither the hub nor this machine's cache"),
        (from_(answered(503), LocalEntryNotFoundError(ABSENT)), True, "answers with HTTP 503"),
        (from_(answered(404, RevisionNotFoundError), LocalEntryNotFoundError(ABSENT)), False, "no such revision"),
        (from_(OfflineModeIsEnabled("x"), ConnectionError("could not reach")), False, "HF_HUB_OFFLINE"),
        (while_(from_(answered(502), LocalEntryNotFoundError("x")), FileNotFoundError("nowhere")), True, "HTTP 502"),
        (while_(httpx.ReadError("x"), OSError(errno.ENOSPC, "No space left")), False, None),
        (UserError("mine", where="w"), False, "mine"),
    ],
    ids=lambda item: "",
)
def test_what_passes_and_what_is_said_without_urls(clock, error, passes, what):
    assert transient(error) is passes

    def call() -> None:
        raise error

    with pytest.raises(UserError) as raised:
        from_hub("it", call, seconds=10)
    assert isinstance(raised.value, Unavailable) is passes
    assert (what is None or what in raised.value.what) and "secret" not in str(raised.value)
    assert raised.value.where == ("w" if what == "mine" else "it")
    assert (clock.now > 0) is passes


def test_what_is_no_error_of_the_hub_goes_through(clock):
    with pytest.raises(ZeroDivisionError):
        from_hub("it", lambda: 1 // 0)
    assert clock.now == 0


def failing(*errors: Exception):
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "there"

    return call


def test_the_hub_is_asked_again_and_says_how_long_to_wait(clock, monkeypatch):
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)
    assert from_hub("it", failing(answered(503), answered(500))) == "there"
    assert clock.pauses == [0.2, 0.4]
    clock.pauses.clear()
    assert from_hub("it", failing(answered(429, after="40"), answered(503))) == "there"
    assert clock.pauses == [40.2, 0.4]
    clock.pauses.clear()
    monkeypatch.setattr(hub, "time", lambda: 1000.0)
    assert from_hub("it", failing(answered(503, after=formatdate(1030.0)))) == "there"
    assert clock.pauses == [pytest.approx(30.2)]
    clock.pauses.clear()
    assert from_hub("it", failing(answered(503, after="soon"))) == "there"
    assert clock.pauses == [0.2]


def test_who_asks_for_more_patience_than_there_is_is_not_waited_for(clock):
    with pytest.raises(Unavailable, match="429"):
        from_hub("it", failing(answered(429, after="3600")), seconds=600)
    assert clock.now == 0


def test_a_command_waits_for_a_hub_that_asks_it_to(clock, monkeypatch):
    """Though it has not heard of it before: an answer has come."""
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    retry.impatient()
    with pytest.raises(Unavailable):
        from_hub("it", failing(*[httpx.ConnectError("x")] * 1000))
    assert clock.now == pytest.approx(retry.FIRST_LOOK)
    assert from_hub("it", failing(answered(429, after="60"))) == "there"


def test_waiting_is_told_without_what_may_be_secret(clock, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    said: list[str] = []
    with retry.telling(said.append):
        from_hub("it", failing(*[from_(answered(503), LocalEntryNotFoundError("secret"))] * 40))
    assert said and all("http://hub.example" in text and "HTTP 503" in text and "secret" not in text for text in said)
