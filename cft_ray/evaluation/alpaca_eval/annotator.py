"""How a judge is asked and understood: the alpaca-eval package's prompts, request parameters and parsers.

Which of the two answers stands first is drawn by the package's own rule from the instruction, so that a judge that prefers
one place favours neither side. Preferences count as the package counts them: 1, the reference is better; 2, the model's
answer is; 1.5, neither; between them, by probability.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import yaml
from alpaca_eval import completion_parsers, constants, utils

from cft_ray.evaluation.alpaca_eval.items import Item
from cft_ray.grid.settings import JudgeSettings

# Its parsers log every malformed judgement, whole, to the root logger; here they are counted.
logging.getLogger().addFilter(lambda record: record.pathname != completion_parsers.__file__)

SEED = 0
"""Of the order of the answers: the package's default."""
TIE = 1.5


@dataclass(frozen=True)
class Question:
    """What a judge is asked about one item.

    Args:
        number: of the item.
        messages: of the conversation, with ``role`` and ``content``.
        switched: the model's answer stands first.
        digest: of everything that the judge is told.
    """

    number: int
    messages: list[dict[str, str]]
    switched: bool
    digest: str


class Annotator:
    """One of the package's annotators.

    Args:
        settings: its name, and changes to its request parameters.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        folder = constants.EVALUATORS_CONFIG_DIR
        declared = yaml.safe_load((folder / settings.annotator / "configs.yaml").read_text())[settings.annotator]
        # Taken apart while it is still a template: an answer that holds the marks of a turn must not begin one.
        self._messages: list[dict[str, str]] = utils.prompt_to_chatml((folder / declared["prompt_template"]).read_text())
        changed = {**declared["completions_kwargs"], **settings.parameters}
        self.parameters: dict[str, Any] = {
            name: value for name, value in changed.items() if name != "model_name" and value is not None
        }
        """of a chat completion, beside model and messages"""
        options = declared.get("completion_parser_kwargs") or {}
        self.tokens: tuple[str, ...] = tuple(options.get("denominator_tokens", ()))
        """the tokens whose log-probabilities are compared; none where a text is parsed"""
        self._parse: Callable[[Any], list[Any]] = partial(
            getattr(completion_parsers, declared["fn_completion_parser"]), **options
        )

    def question(self, item: Item, answer: str) -> Question:
        """What the judge is asked about a model's answer to an item."""
        switched: bool = utils.random_seeded_choice(f"is_switched_outputs{item.instruction}{SEED}", [False, True])
        first, second = (answer, item.reference) if switched else (item.reference, answer)
        values = {"instruction": item.instruction, "output_1": first, "output_2": second}
        messages = [{**message, "content": _filled(message["content"], values)} for message in self._messages]
        told = repr([[message["role"], message["content"]] for message in messages])
        return Question(item.number, messages, switched, sha256(told.encode()).hexdigest()[:16])

    def preference(self, question: Question, choice: Mapping[str, Any]) -> float | None:
        """What the judge prefers, from 1 (the reference) to 2 (the model's answer); None: what it says is malformed.

        Args:
            question: what it was asked.
            choice: of an OpenAI chat completion: ``message`` with ``content``; ``logprobs`` where tokens are compared.
        """
        try:
            (found,) = self._parse(choice if self.tokens else choice["message"]["content"] or "")
            value = TIE if found == 0 else float(found)
        except (ValueError, TypeError, KeyError, IndexError, AssertionError, SyntaxError):  # what the parsers raise
            return None
        if np.isnan(value) or not utils.validate_alpacaeval_preference(value):
            return None
        return 3 - value if question.switched else value


def _filled(template: str, values: Mapping[str, str]) -> str:
    """All places of a template at once: what is filled in may itself look like a place."""
    return re.sub(r"\{(instruction|output_1|output_2)\}", lambda found: values[found[1]], template)
