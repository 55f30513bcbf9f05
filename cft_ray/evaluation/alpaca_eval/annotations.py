"""Judgements kept as they come, each in a file of its own, so that none is asked for twice.

They lie in the stage's checkpoints (a folder or an object store), so that any machine goes on with them. A file is named
by its item and by a digest of everything that the judge was told: a judgement of another answer is not taken for this one's.
"""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Literal

from cft_ray.evaluation.alpaca_eval.annotator import Question
from cft_ray.storage.root import Storage

READERS = 8
"""files read at a time: an object store answers each after a while"""


@dataclass(frozen=True)
class Annotation:
    """A judgement, or why there is none.

    Args:
        number: of the item.
        digest: of what the judge was told.
        preference: 1 (the reference) to 2 (the model's answer); None: there is no judgement.
        failure: ``malformed``: the judge said something else; ``refused``: the request was turned down for what it holds;
            ``unanswered``: there was no answer this time.
        said: the judge's words, or why it refused, or the server's.
        prompt_tokens: that were asked, over all attempts.
        completion_tokens: that the judge gave, over all attempts.
        attempts: times that it was asked.
        runs: that asked for it.
    """

    number: int
    digest: str
    preference: float | None
    failure: Literal["malformed", "refused", "unanswered"] | None = None
    said: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    runs: int = 1


class Annotations:
    """The judgements of one stage.

    Args:
        uri: folder or URI: ``{storage}/checkpoints/{fingerprint}`` of the stage.
    """

    def __init__(self, uri: str) -> None:
        self._storage = Storage(uri)
        self._lock = threading.Lock()
        self._found: dict[int, Annotation] = {}

    def read(self, questions: Sequence[Question]) -> dict[int, Annotation]:
        """Number of an item -> its judgement, where there is one of exactly this question."""
        wanted = {_name(question.number, question.digest) for question in questions}
        there = [entry.name for entry in self._storage.list("annotations") if entry.name in wanted]
        with ThreadPoolExecutor(READERS) as pool:
            kept = list(pool.map(self._read, there))
        self._found = {annotation.number: annotation for annotation in kept}
        return dict(self._found)

    def keep(self, annotation: Annotation) -> None:
        """Write a judgement, whole and durable; may be called by several threads.

        Raises:
            UserError: the storage cannot be written to.
        """
        self._storage.write(
            "annotations", _name(annotation.number, annotation.digest), data=json.dumps(asdict(annotation)).encode()
        )
        with self._lock:
            self._found[annotation.number] = annotation

    @property
    def found(self) -> dict[int, Annotation]:
        """What was read and kept: number of an item -> its judgement."""
        with self._lock:
            return dict(self._found)

    def _read(self, name: str) -> Annotation:
        return Annotation(**json.loads(self._storage.read("annotations", name) or b"{}"))


def _name(number: int, digest: str) -> str:
    return f"{number:06d}-{digest}.json"
