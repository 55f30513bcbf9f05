"""A harness model that answers from a function: what a model of known answers scores can be worked out by hand."""

from collections.abc import Callable
from typing import Any

from lm_eval.api.model import LM

from cft_ray.evaluation.templated import Templated


class TableAnswers(Templated, LM):
    """Answers at once.

    Args:
        answer: item -> answer.
        prefers: (item, choice) -> log-likelihood, where choices are scored.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str] = lambda doc: "",
        prefers: Callable[[dict[str, Any], str], float] | None = None,
    ) -> None:
        super().__init__()
        self.answer, self.prefers = answer, prefers
        self.asked = 0

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """The answers."""
        self.asked += len(requests)
        return [self.answer(request.doc) for request in requests]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """What the choices are worth."""
        assert self.prefers is not None
        self.asked += len(requests)
        return [(self.prefers(request.doc, request.args[1].strip()), False) for request in requests]
