"""A Hugging Face hub on loopback: the endpoints that its client asks when it looks up and downloads repositories."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 10_000
"""Bytes from which on a file is kept by Git LFS, and so known by its SHA-256."""


@dataclass
class Repository:
    """Files by revision; ``broken``: path -> byte behind which the connection is cut."""

    branches: dict[str, dict[str, bytes]]
    gated: bool = False
    broken: dict[str, int] = field(default_factory=dict)
    mends: bool = False
    """whether a connection is cut once only for each path"""
    damaged: set[str] = field(default_factory=set)
    """paths whose bytes are not what the hub says they are"""

    def commit(self, revision: str) -> str | None:
        commits = {name: sha1(repr(sorted(files.items())).encode()).hexdigest() for name, files in self.branches.items()}
        return commits.get(revision) or (revision if revision in commits.values() else None)

    def files(self, commit: str) -> dict[str, bytes]:
        return next(files for name, files in self.branches.items() if self.commit(name) == commit)


class Hub:
    """What is served, and what was asked: (method, path, whether a token came with it)."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.asked: list[tuple[str, str, bool]] = []
        self.refusing: Callable[[str], tuple[int, dict[str, str]] | None] = lambda path: None
        """status and headers with which a request is refused, whatever is asked; None: it is answered"""
        self.url = ""

    def add(self, kind: str, name: str, files: dict[str, bytes], **more) -> Repository:
        branches = {"main": files, **more.pop("branches", {})}
        self.repositories[kind, name] = Repository(branches, **more)
        return self.repositories[kind, name]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The hub at ``hub.url`` while the block runs."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes = b"") -> None:
        url = urlsplit(self.path)
        self.served.asked.append((self.command, unquote(url.path), "Authorization" in self.headers))
        if refusal := self.served.refusing(url.path):
            self._refuse(refusal[0], "", refusal[1])
            return
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "api" and parts[1] in ("models", "datasets"):
            self._api(parts[1][:-1], "/".join(parts[2:4]), parts[4:], body, parse_qs(url.query))
        elif "resolve" in parts:
            kind = "dataset" if parts[0] == "datasets" else "model"
            name, rest = parts[1:] if kind == "dataset" else parts, None
            name, rest = "/".join(name[:2]), name[3:]
            self._resolve(kind, name, rest[0], "/".join(rest[1:]))
        else:
            self._refuse(404, "")

    def _found(self, kind: str, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.served.repositories.get((kind, name))
        if repository is None:
            self._refuse(401 if "Authorization" not in self.headers else 404, "RepoNotFound")
            return None
        commit = repository.commit(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return repository, commit

    def _api(self, kind: str, name: str, rest: list[str], body: bytes, query: dict[str, list[str]]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        found = self._found(kind, name, revision)
        if found is None:
            return
        repository, commit = found
        files = repository.files(commit)
        if rest[:1] == ["auth-check"]:
            if repository.gated:
                self._refuse(403, "GatedRepo")
            else:
                self._json({})
            return
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0})
            return
        folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
        entries = [_entry(path, data) for path, data in files.items()]
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        if rest[0] == "tree":
            inside = "/".join(rest[2:])
            recursive = query.get("recursive", ["False"])[0].lower() == "true"
            if inside and inside not in folders:
                self._refuse(404, "EntryNotFound")
                return
            start = f"{inside}/" if inside else ""
            entries = [entry for entry in entries if entry["path"].startswith(start) and entry["path"] != inside]
            if not recursive:
                entries = [entry for entry in entries if "/" not in entry["path"][len(start) :]]
            self._json(entries)
        elif rest[0] == "paths-info":
            text = body.decode()
            asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
            self._json([entry for entry in entries if entry["path"] in asked])
        else:
            self._refuse(404, "EntryNotFound")

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        found = self._found(kind, name, revision)
        if found is None:
            return
        repository, commit = found
        if repository.gated:
            self._refuse(403, "GatedRepo")
            return
        data = repository.files(commit).get(path)
        if data is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        about = _entry(path, data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{about["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in about:
            headers |= {"X-Linked-Etag": f'"{about["lfs"]["oid"]}"', "X-Linked-Size": str(len(data))}
        if path in repository.damaged:
            data = data[::-1]
        begin, status = 0, 200
        if wanted := self.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data) - begin)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if path in repository.broken:
            end = repository.broken.pop(path) if repository.mends else repository.broken[path]
            self.wfile.write(data[begin:end])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(data[begin:])

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()


def _entry(path: str, data: bytes) -> dict:
    oid = sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    entry = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if len(data) >= LARGE:
        entry["lfs"] = {"oid": sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
