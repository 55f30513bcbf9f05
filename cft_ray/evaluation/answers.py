"""Answers kept while a benchmark is being asked, so that a stage that dies goes on where its last part ended.

The harness asks a model everything at once and scores afterwards. Between the two stands `Kept`: it hands the requests to
the model in parts, writes each part's answers to the stage's checkpoints (a folder or an object store, so that any machine
can go on), and never asks again what is there. Tasks follow each other in the requests, so the parts are ranges of
languages or subjects; scoring sees all answers together, as without it.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from cft_ray.storage.root import Storage

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

SECONDS = 60.0
"""What a part should take: this much work is lost at most by a death (twice that, where answers get longer)."""
FIRST = {"cuda": 1024, "cpu": 256}
"""Requests of the first part, by device, before it is known how long they take: enough to keep the engine full."""
GROWTH = 8
"""A part is at most this many times as large as the one before."""

_CHANGES = "-changes"

Answer = Any
"""What the harness expects of a request: text, a log-likelihood, or a log-likelihood and whether it is the greedy text."""


class Answers:
    """Answers on disk or in an object store, by the requests that they answer.

    Args:
        uri: folder or URI; ``{storage}/checkpoints/{fingerprint}`` of the stage.
        prove: raises where another process has taken the stage over.
    """

    def __init__(self, uri: str, prove: Callable[[], None] = lambda: None) -> None:
        self.storage, self._prove = Storage(uri), prove

    def read(self, name: str) -> dict[int, Answer]:
        """Place of a request among its fellows -> answer, of all parts; ``name``: see `name_of`."""
        found: dict[int, Answer] = {}
        for entry in self.storage.list("answers", name):
            if entry.is_file and entry.name.endswith(".json"):
                part = json.loads(self.storage.read("answers", name, entry.name) or b"{}")
                found |= {int(place): tuple(answer) if isinstance(answer, list) else answer for place, answer in part.items()}
        return found

    def write(self, name: str, part: dict[int, Answer]) -> None:
        """Keep a part, whole or not at all."""
        self._prove()
        self.storage.write("answers", name, f"{min(part):09d}.json", data=json.dumps(part).encode())


def name_of(kind: str, requests: "list[Instance]") -> str:
    """Names the answers to these requests: a digest of every text and setting in them, in order."""
    digest = sha256(kind.encode())
    for request in requests:
        digest.update(json.dumps(request.args, sort_keys=True, default=str).encode())
    return f"{kind}-{digest.hexdigest()[:16]}"


class Kept:
    """A harness model whose answers are kept; everything else is the model's own.

    Args:
        model: harness model.
        answers: where they are kept.
        first: requests of the first part.
        progress: told the numbers of answers that are there and of requests.
    """

    def __init__(
        self, model: Any, answers: Answers, *, first: int = FIRST["cpu"], progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.model, self.answers, self.first, self.progress = model, answers, first, progress
        self.changes: Counter[str] = Counter()
        """what had to be changed so that requests fit the model's context -> their number"""
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def generate_until(self, requests: "list[Instance]") -> list[str]:
        """Answers in the requests' order."""
        return self._ask("generate_until", requests)

    def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
        """Log-likelihoods in the requests' order."""
        return self._ask("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
        """Log-likelihoods of whole texts, in the requests' order."""
        return self._ask("loglikelihood_rolling", requests)

    def _ask(self, kind: str, requests: "list[Instance]") -> list[Any]:
        name = name_of(kind, requests)
        found = self.answers.read(name)
        self.requests += len(requests)
        for changes in self.answers.read(f"{name}{_CHANGES}").values():
            self.changes.update(changes)
        waiting = [place for place in range(len(requests)) if place not in found]
        size = self.first
        self._tell(len(found), len(requests))
        while waiting:
            part, waiting = waiting[:size], waiting[size:]
            begun = time.monotonic()
            answers = getattr(self.model, kind)([requests[place] for place in part])
            seconds = max(time.monotonic() - begun, 1e-3)
            fresh = dict(zip(part, answers, strict=True))
            if changes := self.model.take_changes():
                self.changes.update(changes)
                self.answers.write(f"{name}{_CHANGES}", {part[0]: changes})
            self.answers.write(name, fresh)
            found |= fresh
            size = min(max(int(len(part) * SECONDS / seconds), 1), GROWTH * size)
            self._tell(len(found), len(requests))
        return [found[place] for place in range(len(requests))]

    def account(self) -> dict[str, Any]:
        """For the stage's outputs, where requests did not fit as they were: ``account``, how many and what was changed."""
        if not self.changes:
            return {}
        return {"account": {"came": self.requests, "used": self.requests, "noted": dict(sorted(self.changes.items()))}}

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)
