"""A judge behind an OpenAI-compatible endpoint.

The client retries what may pass (rate limits, a server's errors, time-outs, broken connections) with exponentially growing,
jittered pauses, or as long as the server asks for. What is left after that is one of three things: a mistake of the user's
or a server that is not there, which ends the judging; an item that this judge cannot judge, which is kept as such; or an
item that got no answer this time, which is asked again when the stage is run again.
"""

import os
from typing import Any, Literal

import openai
from pydantic import BaseModel

from cft_ray.errors import UserError
from cft_ray.evaluation.alpaca_eval.annotations import Annotation
from cft_ray.evaluation.alpaca_eval.annotator import Annotator, Question
from cft_ray.grid.settings import JudgeSettings

LONGEST_WORDS = 400
"""characters kept of what a judge or a server says"""


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
        said = ""
        failure: Literal["malformed", "refused"] = "malformed"
        preference: float | None = None
        attempt = 0
        while attempt < self._settings.attempts and preference is None and failure == "malformed":
            attempt += 1
            try:
                answer = self._ask(question)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                said, failure = self._words(error), "refused"
                continue
            choice, used = _taken_apart(answer)
            prompt_tokens += used[0]
            completion_tokens += used[1]
            said = _said(choice)
            preference = self._annotator.preference(question, choice)
        return Annotation(
            number=question.number,
            digest=question.digest,
            preference=preference,
            failure=None if preference is not None else failure,
            said=said,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            attempts=attempt,
        )

    def _ask(self, question: Question) -> Any:
        """What the endpoint answers to one request, tried again as the client does; None where it is no JSON."""
        completions: Any = self._client.chat.completions
        try:
            return completions.create(model=self._settings.model, messages=question.messages, **self._annotator.parameters)
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            raise
        except (openai.APITimeoutError, openai.InternalServerError) as error:
            raise NoAnswer(self._words(error)) from None
        except openai.OpenAIError as error:
            raise self._mistake(error) from None
        except TypeError as error:
            raise UserError(
                f"the client refuses the request parameters ({error})",
                where="evaluation.judge.parameters",
                fix="those of an OpenAI chat completion: max_tokens, temperature, seed …",
            ) from error
        except ValueError:
            return None

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
            reason = str(error.__cause__ or error).splitlines()[0]
            fix = "check evaluation.judge.base_url and the network of the machine that drives the stage"
            return UserError(f"the judge cannot be reached ({reason})", where=self._where, fix=fix)
        return UserError(f"the judge cannot be asked ({self._words(error)})", where=self._where, fix="check evaluation.judge")

    def _words(self, error: Exception) -> str:
        """What an error says, in one line, without the key."""
        text = " ".join(str(error).split())[:LONGEST_WORDS]
        return text.replace(self._key, "[key]") if self._key else text


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
    return key


def _taken_apart(answer: Any) -> tuple[dict[str, Any], tuple[int, int]]:
    """(first choice, (prompt tokens, completion tokens)) of an answer, which need not have the form that it should."""
    whole = answer.model_dump(warnings=False) if isinstance(answer, BaseModel) else {}
    choices, used = whole.get("choices"), whole.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    counts = [used.get(name) if isinstance(used, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, completion_tokens = (count if isinstance(count, int) else 0 for count in counts)
    return choice, (prompt_tokens, completion_tokens)


def _said(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content[:LONGEST_WORDS] if isinstance(content, str) else ""
