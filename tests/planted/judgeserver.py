"""A judge on loopback that speaks OpenAI's protocol, prefers what the test plants, and fails as the test says.

Items are told apart by their text: the instruction is ``instruction N``, the reference ``reference N``.
"""

import json
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "planted-secret-key"

Step = int | str | tuple[int, dict[str, Any]]


class JudgeServer:
    """Serves until `close`.

    Args:
        wins: number of an item -> whether the model's answer is better; None: the order says it (the first).
        script: item -> what comes of its requests, one after the other, before it is judged: an HTTP status, ``hang``
            (longer than any patience), ``malformed``, ``broken`` (no JSON), ``empty``, ``null`` (content is null),
            ``down`` (HTTP 200 with an error in the body), ``choiceless``, ``filtered`` (stopped by a content filter), or an
            HTTP status with the body's error.
        always: what comes of every request instead; None: it judges.
        hold: asked before each judgement with the number of judgements given; while it is true, nothing is answered.
        key: that must be shown; None: none.
    """

    def __init__(
        self,
        wins: Callable[[int], bool] = lambda number: number % 2 == 0,
        script: dict[int, Sequence[Step]] | None = None,
        always: Step | None = None,
        hold: Callable[[int], bool] = lambda given: False,
        key: str | None = None,
        model: str = "planted",
    ) -> None:
        self.requests: Counter[int] = Counter()
        self.judged: Counter[int] = Counter()
        self.first: Counter[bool] = Counter()
        """whether the reference stood first -> how often"""
        self.bodies: list[dict[str, Any]] = []
        self.most = 0
        """requests under way at once"""
        self._running = 0
        self._wins, self._hold, self._key, self._model = wins, hold, key, model
        self._script = defaultdict(list, {number: list(steps) for number, steps in (script or {}).items()})
        self._lock = threading.Lock()
        self.always = always
        self.closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if not server._refused(self):
                    server._send(self, 200, {"object": "list", "data": [{"id": server._model, "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not server._refused(self):
                    server._judge(self, body)

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()

    def _refused(self, handler: BaseHTTPRequestHandler) -> bool:
        shown = handler.headers.get("Authorization")
        if self._key is None or shown == f"Bearer {self._key}":
            return False
        self._send(handler, 401, {"error": {"message": f"Incorrect API key provided: {shown}", "code": "invalid_api_key"}})
        return True

    def _judge(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        text = body["messages"][-1]["content"]
        found = re.search(r"instruction (\d+)", text)
        assert found is not None, text
        number = int(found[1])
        with self._lock:
            self.requests[number] += 1
            self.bodies.append(body)
            self._running += 1
            self.most = max(self.most, self._running)
            step = self.always or (self._script[number].pop(0) if self._script[number] else "judge")
        try:
            self._answer(handler, body, number, text, step)
        finally:
            with self._lock:
                self._running -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], number: int, text: str, step: Step) -> None:
        if body["model"] != self._model:
            self._send(handler, 404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            return
        if isinstance(step, int):
            self._send(handler, step, {"error": {"message": f"planted {step}"}}, {"retry-after-ms": "20"})
            return
        if isinstance(step, tuple):
            self._send(handler, step[0], {"error": step[1]})
            return
        if step in ("down", "choiceless"):
            told = {"error": {"code": 502, "message": "planted: the provider is down"}} if step == "down" else {"choices": []}
            self._send(handler, 200, told)
            return
        if step == "hang":
            self.closed.wait(30)
            handler.close_connection = True
            return
        while self._hold(sum(self.judged.values())):
            if self.closed.wait(0.02) or _gone(handler):
                handler.close_connection = True
                return
        reference_first = text.index(f"reference {number}") < text.index('"model": "model_2"')
        model_first = not reference_first
        first_wins = self._wins(number) == model_first
        order = (1, 2) if first_wins else (2, 1)
        content = f"[{{'model': 'model_1', 'rank': {order[0]}}}, {{'model': 'model_2', 'rank': {order[1]}}}]"
        content = {"malformed": "Both are fine.", "empty": "", "null": None, "filtered": None}.get(step, content)
        if step == "broken":
            self._send(handler, 200, b"<html>")
            return
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        stopped = "content_filter" if step == "filtered" else "stop"
        choice = {"index": 0, "finish_reason": stopped, "message": {"role": "assistant", "content": content}}
        answer = {"id": "x", "object": "chat.completion", "created": int(time.time()), "model": self._model}
        if step == "judge":  # before it is sent: a test may look as soon as it has come
            with self._lock:
                self.judged[number] += 1
                self.first[reference_first] += 1
        self._send(handler, 200, {**answer, "choices": [choice], "usage": usage})

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True


def _gone(handler: BaseHTTPRequestHandler) -> bool:
    """Whether the client has closed its end."""
    try:
        return handler.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
