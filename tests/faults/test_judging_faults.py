"""A judge that fails in every way, and a judging that is killed: each item judged once, none lost, secrets kept."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_drive import judge, planted_questions
from judgeserver import KEY, JudgeServer

from cft_ray.errors import StageFailed, UserError
from cft_ray.evaluation.alpaca_eval.annotations import Annotations
from cft_ray.evaluation.alpaca_eval.annotator import Annotator
from cft_ray.evaluation.alpaca_eval.endpoint import LONGEST_WORDS, Endpoint
from cft_ray.grid.settings import JudgeSettings

DRIVER = Path(__file__).parent.parent / "planted" / "judge_drive.py"
ITEMS = 24
WAIT = 120.0

Serve = Callable[..., JudgeServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts scripted judges, and stops them."""
    running: list[JudgeServer] = []

    def start(**arguments: Any) -> JudgeServer:
        running.append(JudgeServer(**arguments))
        return running[-1]

    yield start
    for server in running:
        server.close()


def settings(server: JudgeServer, **changes: Any) -> JudgeSettings:
    return JudgeSettings(**{"model": "planted", "base_url": server.url, "timeout": 5.0, "retries": 4, "tolerate": 0.0} | changes)


def test_all_are_judged_once_and_as_planted(serve, tmp_path):
    server = serve(wins=lambda number: number % 3 == 0)
    annotations, tally = judge(str(tmp_path), settings(server, max_concurrency=4), ITEMS)
    assert server.judged == dict.fromkeys(range(ITEMS), 1) and 1 < server.most <= 4
    assert {number: found.preference for number, found in annotations.found.items()} == {
        number: 2.0 if number % 3 == 0 else 1.0 for number in range(ITEMS)
    }
    assert server.first[True] and server.first[False]  # both orders were asked
    assert not sum(tally.counts.values())
    assert {found.prompt_tokens for found in annotations.found.values()} == {100}
    judge(str(tmp_path), settings(server), ITEMS)
    assert server.judged == dict.fromkeys(range(ITEMS), 1)  # nothing was asked again


def test_what_passes_is_tried_again(serve, tmp_path):
    script = {0: [429, 429], 1: [500, 503], 2: ["hang"], 3: ["malformed"], 4: ["broken", "empty"], 5: [429, "malformed", 500]}
    server = serve(script=script)
    annotations, _ = judge(str(tmp_path), settings(server, timeout=1.0), 8)
    assert server.judged == dict.fromkeys(range(8), 1)
    assert [server.requests[number] for number in range(8)] == [3, 3, 2, 2, 3, 4, 1, 1]
    assert [annotations.found[number].attempts for number in range(8)] == [1, 1, 1, 2, 3, 2, 1, 1]
    # Malformed judgements cost too; what is no JSON says nothing of its cost.
    assert [annotations.found[number].prompt_tokens for number in (0, 3, 4, 5)] == [100, 200, 200, 200]


FILTER = (400, {"message": "planted: the response was filtered", "code": "content_filter"})
LONG = (400, {"message": "This model's maximum context length is 4096 tokens. However, your prompt has 5000.", "code": 400})
CREDIT = (400, {"type": "invalid_request_error", "message": "planted: the account's balance is too low; add funds"})


@pytest.mark.parametrize("step", [FILTER, LONG, "filtered", (403, {"message": "flagged", "metadata": {"flagged_input": "x"}})])
def test_what_depends_on_the_item_is_final(serve, tmp_path, step):
    server = serve(script={2: [step] * 9})
    asked = settings(server, tolerate=0.1)
    annotations, tally = judge(str(tmp_path), asked, ITEMS)
    assert tally.counts == {"malformed": 0, "refused": 1, "unanswered": 0}
    assert annotations.found[2].failure == "refused" and server.requests[2] == 1
    before = dict(server.requests)
    _, again = judge(str(tmp_path), asked, ITEMS)
    assert again.counts == tally.counts and dict(server.requests) == before


def test_what_is_malformed_is_counted_and_asked_again_by_another_run(serve, tmp_path):
    server = serve(script={1: ["malformed"] * 3})
    asked = settings(server, tolerate=0.1, attempts=2)
    annotations, tally = judge(str(tmp_path), asked, ITEMS)
    assert tally.counts == {"malformed": 1, "refused": 0, "unanswered": 0}
    assert (annotations.found[1].preference, annotations.found[1].said) == (None, "Both are fine.")
    annotations, tally = judge(str(tmp_path), asked, ITEMS)
    assert not sum(tally.counts.values()) and server.judged == dict.fromkeys(range(ITEMS), 1)
    assert (annotations.found[1].attempts, annotations.found[1].prompt_tokens, annotations.found[1].runs) == (4, 400, 2)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (CREDIT, "balance is too low"),
        ((422, {"message": "planted: no such parameter"}), "no such parameter"),
        ((402, {"message": "planted: insufficient credits"}), "insufficient credits"),
        ((403, {"message": "planted: the key is disabled"}), "key is disabled"),
        ((429, {"message": "planted: quota exceeded", "code": "insufficient_quota"}), "quota exceeded"),
        ("down", "the provider is down"),
        ("choiceless", "without text"),
        ("null", "without text"),
        ("empty", "without text"),
        ("broken", "html|no JSON"),
    ],
)
@pytest.mark.parametrize("tolerate", [0.0, 0.5])
def test_a_judge_that_is_out_of_order_is_asked_again_when_it_is_mended(serve, tmp_path, monkeypatch, step, words, tolerate):
    monkeypatch.setattr("cft_ray.evaluation.alpaca_eval.endpoint.PAUSE", 0.01)
    server = serve()
    judge(str(tmp_path), settings(server), 4)
    server.always = step
    asked = settings(server, tolerate=tolerate, retries=0)
    with pytest.raises((StageFailed, UserError), match=words):
        judge(str(tmp_path), asked, 6)
    server.always = None
    annotations, tally = judge(str(tmp_path), asked, 6)
    assert not sum(tally.counts.values())
    assert server.judged == dict.fromkeys(range(6), 1), "what was judged is not asked again, what was not is"
    assert all(found.preference is not None for found in annotations.found.values())


def test_an_item_without_an_answer_is_left_out_only_after_another_run_has_asked(serve, tmp_path):
    server = serve(script={1: [500] * 9})
    asked = settings(server, tolerate=0.1, retries=1)
    with pytest.raises(StageFailed, match=r"1 of 24 items.*planted 500"):
        judge(str(tmp_path), asked, ITEMS)
    before = dict(server.requests)
    annotations, tally = judge(str(tmp_path), asked, ITEMS)
    assert tally.counts["unanswered"] == 1 and annotations.found[1].runs == 2
    assert {number: count for number, count in server.requests.items() if number != 1} == {
        number: count for number, count in before.items() if number != 1
    }


def test_what_a_server_says_of_the_key_is_not_kept(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_TEST_KEY", KEY)
    server = serve(key=KEY, always=(400, {"message": f"planted: balance of {KEY} and of sk-abcdef123456 is too low"}))
    with pytest.raises(StageFailed, match="balance") as raised:
        judge(str(tmp_path), settings(server, key_env="CFT_TEST_KEY"), 3)
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert kept and not any(secret in text for secret in (KEY, "sk-abcdef") for text in (str(raised.value), kept))


def test_too_many_failures_end_it_early_with_one_message(serve, tmp_path):
    server = serve(script={number: ["malformed"] * 9 for number in range(ITEMS)})
    with pytest.raises(StageFailed) as raised:
        judge(str(tmp_path), settings(server, attempts=2, max_concurrency=2, tolerate=0.1), ITEMS)
    message = str(raised.value)
    assert "malformed" in message and "Both are fine." in message and f"of {ITEMS}" in message and "\n" not in message
    assert sum(server.requests.values()) <= 2 * (2 + 1 + 2)  # two are tolerated, one is too many, two were under way


@pytest.mark.parametrize(
    ("changes", "server_changes", "named"),
    [
        ({"model": "other"}, {}, "other"),
        ({"key_env": "CFT_TEST_KEY"}, {"key": "another"}, "CFT_TEST_KEY"),
        ({"retries": 1}, {"script": {number: [429] * 9 for number in range(ITEMS)}}, "rate limit"),
    ],
)
def test_the_users_mistakes_are_named_without_the_key(serve, tmp_path, monkeypatch, changes, server_changes, named):
    monkeypatch.setenv("CFT_TEST_KEY", KEY)
    server = serve(**server_changes)
    with pytest.raises(UserError, match=named) as raised:
        judge(str(tmp_path), settings(server, max_concurrency=2, **changes), ITEMS)
    assert KEY not in repr(raised.value) and KEY not in str(raised.value)
    assert not server.judged


def test_the_key_is_read_from_its_variable_and_left_nowhere(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_TEST_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "the-users-other-key")
    server = serve(key=KEY)
    asked = settings(server, key_env="CFT_TEST_KEY")
    Endpoint(asked, Annotator(asked)).check()
    judge(str(tmp_path), asked, 3)
    assert server.judged == dict.fromkeys(range(3), 1)
    assert not [path for path in tmp_path.rglob("*.json") if KEY in path.read_text()]
    monkeypatch.delenv("CFT_TEST_KEY")
    with pytest.raises(UserError, match="CFT_TEST_KEY"):
        Endpoint(asked, Annotator(asked))
    without = settings(server)
    with pytest.raises(UserError, match="key") as raised:
        Endpoint(without, Annotator(without)).check()
    assert "the-users-other-key" not in str(raised.value)


def test_the_key_is_in_no_error_wherever_the_text_is_cut(serve, tmp_path, monkeypatch):
    """A server quotes the key at every place of its message around the one where messages are cut."""
    key = "k-9fJ2mQ7xLpW4vZ8tRb3N"
    monkeypatch.setenv("CFT_TEST_KEY", key)
    for padding in range(LONGEST_WORDS - 60, LONGEST_WORDS, 4):
        server = serve(always=(401, {"message": f"{'x' * padding} {key} {key.upper()} {key[:12]}***"}))
        asked = settings(server, key_env="CFT_TEST_KEY", retries=0)
        with pytest.raises(UserError) as raised:
            judge(str(tmp_path / str(padding)), asked, 1)
        said = str(raised.value).casefold()
        assert not [place for place in range(len(key) - 7) if key[place : place + 8].casefold() in said]


@pytest.mark.parametrize("value", ["sec ret-value-1", "secret\nvalue-1", "sécret-value-1", "“secret-value-1”"])
def test_a_key_that_no_header_can_carry_is_named_without_it(serve, monkeypatch, value):
    monkeypatch.setenv("CFT_TEST_KEY", value)
    asked = settings(serve(), key_env="CFT_TEST_KEY")
    with pytest.raises(UserError, match="CFT_TEST_KEY") as raised:
        Endpoint(asked, Annotator(asked)).check()
    assert "value-1" not in str(raised.value) and "cret" not in str(raised.value)


def test_an_endpoint_that_is_not_there_is_named(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    asked = JudgeSettings(model="planted", base_url=url, retries=0)
    with pytest.raises(UserError, match=url):
        Endpoint(asked, Annotator(asked)).check()
    with pytest.raises(UserError, match=url):
        judge(str(tmp_path), asked, 3)


def test_a_killed_judging_goes_on_and_asks_nothing_twice(serve, tmp_path):
    """The judge falls silent after ten judgements; the process is killed then, and another one does the rest."""
    silent = [True]
    server = serve(hold=lambda given: silent[0] and given >= 10)
    asked = settings(server, max_concurrency=4)
    command = [sys.executable, str(DRIVER), str(tmp_path), server.url, str(ITEMS)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = start()
    questions = planted_questions(ITEMS, asked)
    end = time.monotonic() + WAIT
    while len(Annotations(str(tmp_path)).read(questions)) < 10 or sum(server.judged.values()) < 10:
        assert first.poll() is None and time.monotonic() < end, first.communicate()
        time.sleep(0.05)
    first.kill()
    first.communicate()
    kept = Annotations(str(tmp_path)).read(questions)
    assert 10 <= len(kept) < ITEMS and sum(server.judged.values()) == len(kept)
    time.sleep(0.2)  # the judge sees that nobody waits for its last requests any more
    silent[0] = False
    second = start()
    out, error = second.communicate(timeout=WAIT)
    assert second.returncode == 0, error
    assert int(out) == ITEMS
    assert server.judged == dict.fromkeys(range(ITEMS), 1)
    again = Annotations(str(tmp_path)).read(questions)
    assert {number: again[number] for number in kept} == kept and set(again) == set(range(ITEMS))
