"""What an endpoint's answers are taken for, and what is said of its errors, without a server."""

# ruff: noqa: E501 - tables read best with one case a line

import types
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from cft_ray.errors import StageFailed, UserError
from cft_ray.evaluation.alpaca_eval import endpoint
from cft_ray.evaluation.alpaca_eval.annotations import Annotation, Annotations
from cft_ray.evaluation.alpaca_eval.annotator import Annotator, Question
from cft_ray.evaluation.alpaca_eval.endpoint import Endpoint, NoAnswer, Refused, about_the_item
from cft_ray.evaluation.alpaca_eval.judging import FINAL, Tally, judge_all, taken_up
from cft_ray.grid.settings import JudgeSettings

REQUEST: Any = httpx.Request("POST", "http://x")
SETTINGS = JudgeSettings(model="m", base_url="http://localhost:1/v1", attempts=3, retries=7, timeout=11.0)
QUESTION = Question(3, [{"role": "user", "content": "x"}], False, "digest")
FIRST, SECOND = (
    f"[{{'model': 'model_1', 'rank': {one}}}, {{'model': 'model_2', 'rank': {two}}}]" for one, two in ((1, 2), (2, 1))
)


class Answer(BaseModel):
    choices: Any = None
    usage: Any = None
    error: Any = None


def said(text: Any, finish: str = "stop", usage: Any = (5, 2)) -> Answer:
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if isinstance(usage, tuple) else usage
    return Answer(choices=[{"message": {"content": text}, "finish_reason": finish}], usage=counts)


class Asked(Endpoint):
    """Gives what the test says, one after the other."""

    def __init__(self, *answers: Any, key: str | None = None, **settings: Any) -> None:
        given = SETTINGS.model_copy(update=settings)
        self._settings, self._annotator, self._key, self._where = given, Annotator(given), key, "judge m at x"
        self.answers, self.times = list(answers), 0

        def create(**asked: Any) -> Any:
            self.times += 1
            assert asked["model"] == "m" and asked["messages"] == QUESTION.messages
            found = self.answers.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        self._client: Any = types.SimpleNamespace(chat=types.SimpleNamespace(completions=types.SimpleNamespace(create=create)))


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", found.append)
    return found


def status(code: int, message: str, kind: type[openai.APIStatusError] = openai.APIStatusError, body: Any = None) -> Any:
    response: Any = httpx.Response(code, request=REQUEST)
    return kind(message, response=response, body=body)


def test_the_first_judgement_counts(pauses):
    asked = Asked(said(SECOND), said(FIRST))
    assert asked.judge(QUESTION) == Annotation(3, "digest", 2.0, None, SECOND, 5, 2, 1)
    assert asked.times == 1 and pauses == []


def test_a_malformed_judgement_is_asked_for_again_at_once_and_costs(pauses):
    asked = Asked(said("both", usage=(5, 2)), said("neither", usage=(7, None)), said(FIRST, usage=(11, 3)))
    assert asked.judge(QUESTION) == Annotation(3, "digest", 1.0, None, FIRST, 23, 5, 3) and pauses == []
    never = Asked(said("both"), said("both"), said("still both"), said(FIRST))
    assert never.judge(QUESTION) == Annotation(3, "digest", None, "malformed", "still both", 15, 6, 3) and never.times == 3


@pytest.mark.parametrize(
    "nothing", [Answer(), Answer(choices=[]), said(""), said(None), Answer(choices=["x"]), Answer(choices=[{"message": "x"}]), ""]
)
def test_an_answer_without_text_is_waited_for_with_growing_pauses(pauses, nothing):
    assert Asked(nothing, nothing, said(FIRST)).judge(QUESTION).attempts == 3 and pauses == [0.5, 1.0]
    pauses.clear()
    with pytest.raises(NoAnswer):
        Asked(nothing, nothing, nothing, nothing, attempts=4).judge(QUESTION)
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(error={"message": "the provider is down"}), "the provider is down"),
        (Answer(error={"code": 5}), "{'code': 5}"),
        (Answer(error="busy"), "busy"),
        (Answer(), "an answer without text"),
        (ValueError("<html>"), "an answer that is no JSON (<html>)"),
        ("", "an empty answer"),
    ],
    ids=lambda item: str(item)[:20],
)
def test_what_came_instead_of_an_answer_is_said(answer, words):
    with pytest.raises(NoAnswer) as raised:
        Asked(*[answer] * 3).judge(QUESTION)
    assert str(raised.value) == words


def test_an_answer_that_a_filter_stopped_is_final():
    for text, words in ((None, "content filter"), ("half a", "half a")):
        asked = Asked(said(text, "content_filter"))
        assert asked.judge(QUESTION) == Annotation(3, "digest", None, "refused", words, 5, 2, 1) and asked.times == 1
    assert Asked(said(SECOND, "content_filter")).judge(QUESTION).preference == 2.0


def test_a_refusal_of_the_item_counts_what_was_asked_before():
    refusal = status(400, "flagged", openai.BadRequestError)
    found = Asked(said("both"), refusal).judge(QUESTION)
    assert found == Annotation(3, "digest", None, "refused", "flagged", 5, 2, 2)


@pytest.mark.parametrize(
    ("error", "sort", "what", "fix"),
    [
        (status(400, "no such parameter", openai.BadRequestError), NoAnswer, "no such parameter", None),
        (status(422, "odd", openai.UnprocessableEntityError), NoAnswer, "odd", None),
        (status(500, "broken", openai.InternalServerError), NoAnswer, "broken", None),
        (openai.APITimeoutError(REQUEST), NoAnswer, "Request timed out.", None),
        (status(401, "bad key", openai.AuthenticationError), UserError, "the judge refuses the key (bad key)", "name its key's variable: key_env"),
        (status(403, "disabled", openai.PermissionDeniedError), UserError, "the judge refuses the key (disabled)", "name its key's variable: key_env"),
        (status(404, "no model", openai.NotFoundError), UserError, "there is no such judge (no model)", None),
        (status(429, "quota", openai.RateLimitError), UserError, "the judge's rate limit or quota is used up (quota)", None),
        (status(402, "funds"), UserError, "the judge's account has no credit (funds)", "add funds and run the grid again: what is judged is kept"),
        (status(418, "teapot"), UserError, "the judge cannot be asked (teapot)", "check evaluation.judge"),
        (openai.APIConnectionError(message="Connection error.", request=REQUEST), UserError,
         "the judge cannot be reached (Connection error.)", None),
        (TypeError("unexpected argument 'x'"), UserError, "the client refuses the request parameters (unexpected argument 'x')", None),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, Exception) else "",
)  # fmt: skip
def test_errors_are_the_users_or_pass(error, sort, what, fix):
    with pytest.raises(sort) as raised:
        Asked(error).judge(QUESTION)
    found: Any = raised.value
    assert (found.what if sort is UserError else str(found)) == what
    if sort is UserError and not isinstance(error, TypeError):
        assert found.where == "judge m at x" and (fix is None or found.fix == fix)
    with pytest.raises(sort) as raised:
        Asked(error, key_env="JUDGE_KEY").judge(QUESTION)
    if "refuses the key" in what:
        assert raised.value.fix == "put a valid key into the environment variable JUDGE_KEY"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("words", "body", "item"),
    [
        ("The response was filtered: content_filter", None, True),
        ("x", {"code": "content-policy"}, True),
        ("responsible_ai_policy", None, True),
        ("DataInspectionFailed", None, True),
        ("data_inspection_failed", None, True),
        ("your input was flagged", None, True),
        ("x", {"code": "context_length_exceeded"}, True),
        ("string_above_max_length", None, True),
        ("This model's maximum context length is 4096 tokens", None, True),
        ("prompt is too long: 9 tokens", None, True),
        ("'max_tokens' or 'max_completion_tokens' is too large: 9. This model's maximum context length is 4096", None, False),
        ("insufficient balance", {"code": "balance"}, False),
    ],
)
def test_what_is_about_the_item(words, body, item):
    assert about_the_item(status(400, words, openai.BadRequestError, body)) is item


def test_words_are_one_line_of_bounded_length_without_the_key():
    asked = Asked(key="secret-key-value-123")
    assert asked._clean("a\n  b\tc") == "a b c" and len(asked._clean("x" * 1000)) == endpoint.LONGEST_WORDS == 400
    assert asked._clean("key SECRET-KEY-VALUE-123 and secret-key… no") == "key [key] and [key]… no"
    assert asked._clean("secret-k") == "[key]" and asked._clean("secret-") == "secret-"
    assert Asked(key="abc")._clean("xabcx ab") == "x[key]x ab"
    assert Asked()._clean("nothing to hide") == "nothing to hide"
    assert Asked(key="secret-key-value-123")._clean("ẞtraße secret-key-value-123") == "ẞtraße [key]"


@pytest.mark.parametrize(
    ("answer", "choice", "tokens"),
    [
        (said("x"), {"message": {"content": "x"}, "finish_reason": "stop"}, (5, 2)),
        (Answer(choices=[{"a": 1}], usage={"prompt_tokens": "5", "completion_tokens": None}), {"a": 1}, (0, 0)),
        (Answer(choices={"a": 1}, usage=7), {}, (0, 0)),
        ("text", {}, (0, 0)),
    ],
    ids=lambda item: "",
)
def test_an_answer_need_not_have_the_form_that_it_should(answer, choice, tokens):
    assert endpoint._taken_apart(answer) == (choice, tokens)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("sk-123", True), (" sk-123\n", True), ("sk 123", False), ("sk-ä", False), ("a\tb", False), ("", False), ("  ", False)],
)
def test_a_key_is_what_a_header_can_carry(monkeypatch, text, fits):
    monkeypatch.setenv("JUDGE_KEY", text)
    settings = SETTINGS.model_copy(update={"key_env": "JUDGE_KEY"})
    if fits:
        assert endpoint._key(settings) == text.strip()
    else:
        with pytest.raises(UserError, match="JUDGE_KEY") as raised:
            endpoint._key(settings)
        assert "holds is no key" in raised.value.what if text.strip() else "is not set" in raised.value.what
    assert endpoint._key(SETTINGS) is None


def test_a_client_has_the_settings_and_no_key_of_another_service(monkeypatch):
    told: dict[str, Any] = {}
    monkeypatch.setattr(endpoint.openai, "OpenAI", lambda **given: told.update(given))
    Endpoint(SETTINGS, Annotator(SETTINGS))
    assert told == {"api_key": "none", "base_url": "http://localhost:1/v1", "timeout": 11.0, "max_retries": 7}


@pytest.mark.parametrize(
    ("error", "refused"),
    [(None, False), (status(401, "x", openai.AuthenticationError), True), (status(404, "x", openai.NotFoundError), False), (status(500, "x"), False),
     (openai.APIConnectionError(request=REQUEST), True), (status(403, "x", openai.PermissionDeniedError), True)],
    ids=lambda item: type(item).__name__,
)  # fmt: skip
def test_an_endpoint_is_looked_at_early(error, refused):
    for retries, tried in ((7, 2), (1, 1)):
        asked = Asked(retries=retries)
        seen: list[int] = []

        def models() -> None:
            if error is not None:
                raise error

        client = types.SimpleNamespace(models=types.SimpleNamespace(list=models))
        asked._client = types.SimpleNamespace(
            with_options=lambda max_retries, seen=seen, client=client: (seen.append(max_retries), client)[1]
        )
        if refused:
            with pytest.raises(UserError):
                asked.check()
        else:
            asked.check()
        assert seen == [tried]


# --- all of them -----------------------------------------------------------------------------------------------------------


def questions(count: int) -> list[Question]:
    return [Question(number, [], False, f"{number:016d}") for number in range(count)]


class Judge:
    """Judges by a table: number -> failure or None."""

    def __init__(self, failures: dict[int, str] | None = None) -> None:
        self.failures, self.asked = failures or {}, list[int]()

    def judge(self, question: Question) -> Annotation:
        self.asked.append(question.number)
        failure: Any = self.failures.get(question.number)
        if failure == "unanswered":
            raise NoAnswer("no words")
        return Annotation(question.number, question.digest, None if failure else 2.0, failure, "words", 10, 1, 2)


def judged(judge: Judge, folder: Any, count: int = 10, **settings: Any) -> tuple[Tally, Annotations, list[tuple[int, int]]]:
    kept, told = Annotations(str(folder)), list[tuple[int, int]]()
    given = SETTINGS.model_copy(update={"max_concurrency": 1, "tolerate": 0.2, **settings})
    tally = judge_all(judge, questions(count), kept, given, lambda done, total: told.append((done, total)))  # pyright: ignore[reportArgumentType]
    return tally, kept, told


def test_as_many_as_are_tolerated_may_stay_without_judgement(tmp_path):
    assert FINAL == ("refused",)
    tally, kept, told = judged(Judge({3: "malformed", 7: "refused"}), tmp_path)
    assert tally.counts == {"malformed": 1, "refused": 1, "unanswered": 0} and len(kept.found) == 10
    assert told == [(done, 10) for done in range(11)]
    with pytest.raises(StageFailed) as raised:
        judged(Judge({3: "malformed", 7: "refused", 8: "malformed"}), tmp_path / "more")
    assert str(raised.value) == (
        "the judge left 3 of 10 items without judgement: 2 malformed (last: 'words'), 1 refused (last: 'words'); "
        "2 are tolerated (evaluation.judge.tolerate). What is judged is kept."
    )


def test_what_was_asked_in_vain_is_asked_again_and_has_cost(tmp_path):
    judged(Judge({3: "malformed", 7: "refused"}), tmp_path)
    again = Judge()
    tally, kept, told = judged(again, tmp_path)
    assert again.asked == [3] and tally.counts["refused"] == 1 and told == [(9, 10), (10, 10)]
    assert kept.found[3] == Annotation(3, f"{3:016d}", 2.0, None, "words", 20, 2, 4, 2)
    assert kept.found[0] == Annotation(0, f"{0:016d}", 2.0, None, "words", 10, 1, 2, 1)


def test_what_got_no_answer_twice_may_be_left_out(tmp_path):
    judge = Judge({1: "unanswered", 2: "unanswered"})
    with pytest.raises(StageFailed, match=r"no answer this time about 2 of 10 items \(last: 'no words'\)"):
        judged(judge, tmp_path)
    tally, kept, told = judged(judge, tmp_path)
    assert (
        tally.counts == {"malformed": 0, "refused": 0, "unanswered": 2} and kept.found[1].runs == 2 and judge.asked[10:] == [1, 2]
    )
    assert told == [(8, 10)] * 3


def test_several_are_asked_at_a_time_and_no_more(tmp_path):
    import threading

    now, most, lock = [0], [0], threading.Lock()
    meet = threading.Barrier(3, timeout=20)

    class Slow(Judge):
        def judge(self, question: Question) -> Annotation:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            meet.wait()
            with lock:
                now[0] -= 1
            return super().judge(question)

    judged(Slow(), tmp_path, count=9, max_concurrency=3)
    assert most == [3]


def test_what_stays_is_taken_up_first(tmp_path):
    kept = Annotations(str(tmp_path))
    for number, failure in ((0, None), (1, "refused"), (2, "malformed"), (3, "unanswered")):
        kept.keep(Annotation(number, f"{number:016d}", None if failure else 1.5, failure))  # pyright: ignore[reportArgumentType]
    given = SETTINGS.model_copy(update={"tolerate": 0.5})
    tally, waiting = taken_up(questions(5), Annotations(str(tmp_path)), given)
    assert [question.number for question in waiting] == [2, 3, 4] and tally.counts == {
        "malformed": 0,
        "refused": 1,
        "unanswered": 0,
    }
    tally, waiting = taken_up(questions(5), Annotations(str(tmp_path)), given, final=("refused", "malformed"))
    assert [question.number for question in waiting] == [3, 4] and tally.counts["malformed"] == 1
    with pytest.raises(StageFailed, match="left 1 of 5 items"):
        taken_up(questions(5), Annotations(str(tmp_path)), SETTINGS.model_copy(update={"tolerate": 0.1}))


def test_a_refused_word_is_a_text():
    assert Refused("why") == "why"
