"""A judge behind an OpenAI-compatible endpoint.

The client retries what may pass (rate limits, a server's errors, time-outs, broken connections) with exponentially growing,
jittered pauses, or as long as the server asks for. What is left after that is one of three things: a mistake of the user's,
an account without credit or a server that is not there, which ends the judging; an item that this judge refuses for what it
holds (a content filter, a prompt too long for it), which is final; or an item that got no answer this time, which is asked
again when the stage is run again. In doubt it is the last: an account, a server and their settings can be mended.
"""

import os
import re
import time
from typing import Any, Literal

import openai
from pydantic import BaseModel

from cft_ray.errors import UserError, without_secrets
from cft_ray.evaluation.alpaca_eval.annotations import Annotation
from cft_ray.evaluation.alpaca_eval.annotator import Annotator, Question
from cft_ray.grid.settings import JudgeSettings

LONGEST_WORDS = 400
"""characters kept of what a judge or a server says"""
PAUSE = 0.5
"""seconds before an answer that holds none is asked for again; doubled each time"""
_ABOUT_THE_ITEM = re.compile(
    r"content[_ -]?(filter|policy|management policy)|responsible_?ai|data_?inspection_?failed|flagged|"
    r"context_length_exceeded|string_above_max_length|maximum context length|prompt is too long",
    re.IGNORECASE,
)
"""What servers say or code where the item is at fault: OpenAI, Azure, OpenRouter, DashScope, Anthropic, vLLM."""
_ABOUT_THE_SETTINGS = re.compile(r"max_(completion_)?tokens\W+.{0,60}too large", re.IGNORECASE | re.DOTALL)
"""vLLM names the context length here as well."""
_PIECE = 8
"""characters of a key in a row that are never repeated"""


class NoAnswer(Exception):
    """A request came to nothing, however often it was tried; it may succeed another time."""


class Endpoint:
    """Asks the judge; may be used by several threads.

    Args:
        settings: where it is and how it is asked.
        annotator: prompts and parser.

    Raises:
        UserError: the environment variable of its key is not set.
    """

    def __init__(self, settings: JudgeSettings, annotator: Annotator) -> None:
        assert settings.model is not None and settings.base_url is not None
        self._settings, self._annotator = settings, annotator
        self._where = f"judge {settings.model} at {settings.base_url}"
        self._key = _key(settings)
        # Without a key of its own the client would send the user's key for another service.
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=settings.base_url, timeout=settings.timeout, max_retries=settings.retries
        )

    def check(self) -> None:
        """Find out early, and for nothing, whether the endpoint is there and takes the key.

        Raises:
            UserError: it is not, or does not.
        """
        try:
            self._client.with_options(max_retries=min(self._settings.retries, 2)).models.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError) as error:
            raise self._mistake(error) from None
        except openai.APIError:  # it is there, and need not list its models
            return

    def judge(self, question: Question) -> Annotation:
        """Ask until there is a judgement, or as often as the settings say.

        Raises:
            UserError: the endpoint is not there, does not take the key, or does not know the judge.
            NoAnswer: it answers with nothing but errors.
        """
        prompt_tokens = completion_tokens = 0
        attempt, no_answer, filtered = 0, False, False
        preference: float | None = None
        said, answer = "", None
        while attempt < self._settings.attempts:
            attempt += 1
            if no_answer:
                time.sleep(PAUSE * 2 ** (attempt - 2))
            answer = self._ask(question)
            if isinstance(answer, Refused):
                return Annotation(
                    question.number, question.digest, None, "refused", str(answer), prompt_tokens, completion_tokens, attempt
                )
            choice, used = _taken_apart(answer)
            prompt_tokens += used[0]
            completion_tokens += used[1]
            preference = self._annotator.preference(question, choice)
            said = self._clean(_said(choice))
            filtered = choice.get("finish_reason") == "content_filter"
            no_answer = preference is None and not said and not filtered
            if preference is not None or filtered:
                break
        if no_answer:
            raise NoAnswer(self._clean(_instead(answer)))
        failure: Literal["malformed", "refused"] | None = None
        if preference is None:
            failure, said = ("refused", said or "content filter") if filtered else ("malformed", said)
        return Annotation(
            number=question.number,
            digest=question.digest,
            preference=preference,
            failure=failure,
            said=said,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            attempts=attempt,
        )

    def _ask(self, question: Question) -> Any:
        """What the endpoint answers to one request, tried again as the client does; an answer that is no JSON as a text."""
        completions: Any = self._client.chat.completions
        try:
            return completions.create(model=self._settings.model, messages=question.messages, **self._annotator.parameters)
        except (openai.BadRequestError, openai.UnprocessableEntityError, openai.PermissionDeniedError) as error:
            if about_the_item(error):
                return Refused(self._words(error))
            if isinstance(error, openai.PermissionDeniedError):
                raise self._mistake(error) from None
            raise NoAnswer(self._words(error)) from None
        except (openai.APITimeoutError, openai.InternalServerError) as error:
            raise NoAnswer(self._words(error)) from None
        except openai.OpenAIError as error:
            raise self._mistake(error) from None
        except TypeError as error:
            raise UserError(
                f"the client refuses the request parameters ({self._words(error)})",
                where="evaluation.judge.parameters",
                fix="those of an OpenAI chat completion: max_tokens, temperature, seed …",
            ) from error
        except ValueError as error:
            return f"an answer that is no JSON ({error})"

    def _mistake(self, error: openai.OpenAIError) -> UserError:
        variable = self._settings.key_env
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            fix = f"put a valid key into the environment variable {variable}" if variable else "name its key's variable: key_env"
            return UserError(f"the judge refuses the key ({self._words(error)})", where=self._where, fix=fix)
        if isinstance(error, openai.NotFoundError):
            fix = "check evaluation.judge.model and evaluation.judge.base_url"
            return UserError(f"there is no such judge ({self._words(error)})", where=self._where, fix=fix)
        if isinstance(error, openai.RateLimitError):
            fix = "run the grid again later (what is judged is kept), or lower evaluation.judge.max_concurrency"
            return UserError(f"the judge's rate limit or quota is used up ({self._words(error)})", where=self._where, fix=fix)
        if isinstance(error, openai.APIConnectionError):
            reason = self._clean(next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__))
            fix = "check evaluation.judge.base_url and the network of the machine that drives the stage"
            return UserError(f"the judge cannot be reached ({reason})", where=self._where, fix=fix)
        if isinstance(error, openai.APIStatusError) and error.status_code == 402:
            fix = "add funds and run the grid again: what is judged is kept"
            return UserError(f"the judge's account has no credit ({self._words(error)})", where=self._where, fix=fix)
        return UserError(f"the judge cannot be asked ({self._words(error)})", where=self._where, fix="check evaluation.judge")

    def _words(self, error: Exception) -> str:
        """What an error says, in one line, without the key."""
        return self._clean(str(error))

    def _clean(self, text: str) -> str:
        """A line of bounded length without the key, whole or as servers quote it."""
        line = " ".join(text.split())
        return without_secrets(_without(line, self._key) if self._key else line)[:LONGEST_WORDS]


def _without(text: str, key: str) -> str:
    """A text without a key, and without the pieces of it that servers and clients quote (cut short, in other letters)."""
    folded, secret = text.casefold(), key.casefold()
    if len(folded) != len(text):  # a letter that folds to two: then as it is
        folded, secret = text, key
    size, place, kept = min(_PIECE, len(secret)), 0, ""
    while place < len(text):
        length = size if folded[place : place + size] in secret and len(text) - place >= size else 0
        while length and place + length < len(text) and folded[place : place + length + 1] in secret:
            length += 1
        kept += "[key]" if length else text[place]
        place += length or 1
    return kept


class Refused(str):
    """Why the judge will not judge an item whatever is mended: a content filter, a prompt that is too long for it."""

    __slots__ = ()


def about_the_item(error: openai.APIStatusError) -> bool:
    """Whether a refusal depends on what was asked, and on nothing that the user or the server can mend."""
    said = f"{error} {error.body!r}"
    return bool(_ABOUT_THE_ITEM.search(said)) and not _ABOUT_THE_SETTINGS.search(said)


def _key(settings: JudgeSettings) -> str | None:
    if settings.key_env is None:
        return None
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {settings.key_env}, which is to hold the judge's key, is not set",
            where="evaluation.judge.key_env",
            fix=f"export {settings.key_env}=… before `cft-ray run`; on a cluster, in the environment of its nodes",
        )
    if not (key.isascii() and key.isprintable()) or " " in key:  # no header can carry it; the client's error would quote it
        raise UserError(
            f"what the environment variable {settings.key_env} holds is no key: it has characters that a request cannot carry",
            where="evaluation.judge.key_env",
            fix="one key, without quotes, spaces and line breaks",
        )
    return key


def _taken_apart(answer: Any) -> tuple[dict[str, Any], tuple[int, int]]:
    """(first choice, (prompt tokens, completion tokens)) of an answer, which need not have the form that it should."""
    whole = answer.model_dump(warnings=False) if isinstance(answer, BaseModel) else {}
    choices, used = whole.get("choices"), whole.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    counts = [used.get(name) if isinstance(used, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, completion_tokens = (count if isinstance(count, int) else 0 for count in counts)
    return choice, (prompt_tokens, completion_tokens)


def _instead(answer: Any) -> str:
    """What a server said in place of an answer."""
    if isinstance(answer, BaseModel):
        whole = answer.model_dump(warnings=False)
        error = whole.get("error")
        if isinstance(error, dict) and error.get("message"):
            return str(error["message"])
        return str(error) if error else "an answer without text"
    return str(answer) if answer else "an empty answer"


def _said(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""
