"""An S3 that misbehaves when told to: moto's server behind a proxy, both on loopback.

The proxy hands every request on, unless one of its rules says otherwise. It keeps a list of what was asked.
"""

import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Asked:
    """A request: method, path with bucket and query, and whether it asks for a copy."""

    method: str
    path: str
    copy: bool


@dataclass(frozen=True)
class Refuse:
    """Answer with this status and body; the request is not handed on."""

    status: int = 503
    body: bytes = SLOW_DOWN


@dataclass(frozen=True)
class Cut:
    """Close the connection; ``after``: the server has done what was asked, and its answer is lost."""

    after: bool = False


@dataclass(frozen=True)
class Delay:
    """Hand it on after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Garble:
    """Hand it on, and change a byte of the answer."""


Rule = Callable[[Asked], Refuse | Cut | Delay | Garble | None]


@dataclass
class S3Double:
    """A server with its proxy. ``url`` is the proxy's, ``direct`` the server's own."""

    url: str
    direct: str
    rules: list[Rule] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """What makes clients use it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self) -> str:
        """A new bucket's name."""
        import boto3

        name = f"bucket-{os.urandom(4).hex()}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        boto3.client("s3", endpoint_url=self.direct, region_name="us-east-1", **keys).create_bucket(Bucket=name)
        return name

    @contextmanager
    def behaving(self, *rules: Rule) -> Iterator[None]:
        """Rules that hold inside the block; the first that has something to say is followed."""
        self.rules[:0] = rules
        try:
            yield
        finally:
            for rule in rules:
                self.rules.remove(rule)


@contextmanager
def running() -> Iterator[S3Double]:
    """A double, for as long as the block lasts."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    double = S3Double("", f"http://{host}:{port}")

    deciding = threading.Lock()  # moto looks and writes in two steps; S3 decides a conditional put in one

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16  # head and body of an answer leave together: apart, the second waits 40 ms for the first's receipt
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, "x-amz-copy-source" in self.headers)
            double.asked.append(asked)
            action = next((action for rule in list(double.rules) if (action := rule(asked)) is not None), None)
            if isinstance(action, Refuse):
                return self._answer(action.status, {}, action.body)
            if isinstance(action, Cut) and not action.after:
                return self._close()
            if isinstance(action, Delay):
                time.sleep(action.seconds)
            connection = http.client.HTTPConnection(host, port, timeout=60)
            conditional = "If-None-Match" in self.headers or "If-Match" in self.headers
            try:
                with deciding if conditional and self.command == "PUT" else contextlib.nullcontext():
                    connection.request(self.command, self.path, body, dict(self.headers))
                    answer = connection.getresponse()
                    content = answer.read()
            finally:
                connection.close()
            if isinstance(action, Cut):
                return self._close()
            if isinstance(action, Garble) and content:
                content = bytes([content[0] ^ 1]) + content[1:]
            return self._answer(answer.status, dict(answer.getheaders()), content)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            length = str(len(body))
            for name, value in headers.items():
                if name.lower() == "content-length":
                    length = value if self.command == "HEAD" else length
                elif name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _close(self) -> None:
            self.close_connection = True
            self.connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

        def log_message(self, format: str, *args: object) -> None:
            pass

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # it may have been cut
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        double.url = f"http://127.0.0.1:{proxy.server_port}"
        try:
            yield double
        finally:
            proxy.shutdown()
            server.stop()
