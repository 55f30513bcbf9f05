"""How a harness task's question becomes our prompt: the harness' chat-template hook, filled by the grid's template.

The harness hands a model the conversation that a task wants (a system message if the task has a description, one user
message, perhaps the beginning of the answer) and takes text back. Rendering it by the grid's template wraps every
task, stock or ours, in the words in which the model was taught, without a change to the task. The harness hands back the
text; what it was made of is kept where the text alone does not say it, so that its tokens are those that were taught.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cft_ray.data.encoding import Encoder
from cft_ray.errors import UserError
from cft_ray.generation.budget import CUT, Fitted, common_opening, cut, fitted
from cft_ray.grid.settings import Template

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

BLANK_LINE = "\n\n"
"""Between instruction and input in the questions of tasks over canonical rows."""

Scored = tuple[tuple[str, str], list[int], list[int]]
"""The harness' request for a log-likelihood: texts, context's tokens, continuation's tokens."""


class Templated:
    """Mix-in of harness models: our template, our way to begin a sequence and to fit it into the context.

    The class it is mixed into is a `lm_eval.api.model.TemplateLM` with a ``max_length``. ``template`` and ``canonical``
    may be set between evaluations, so that one loaded model serves several.
    """

    tokenizer: Any
    max_length: Any
    prefix_token_id: Any
    _loglikelihood_tokens: Any
    template: Template | None = None
    """None: questions are not wrapped."""
    _encoder: Encoder | None = None
    _asked: dict[str, list[int]]
    canonical: bool = False
    """The questions are canonical rows, written as instruction, blank line, input: they are taken apart again."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._changes: Counter[str] = Counter()
        self._openings: dict[tuple[Template | None, bool], int] = {}

    def take_changes(self) -> dict[str, int]:
        """What had to be changed so that requests fit (`cft_ray.generation.budget`), with their number, since last asked."""
        taken, self._changes = dict(self._changes), Counter()
        return taken

    def opening(self) -> int:
        """Tokens at a prompt's beginning that do not depend on what is asked: they are never cut."""
        key = self.template, self.canonical
        if key not in self._openings:
            texts = ["", ""]
            if self.template is not None:
                texts = [self.apply_chat_template([{"role": "user", "content": content}]) for content in ("a", "b")]
            self._openings[key] = common_opening(*(self.tok_encode(text) for text in texts))
        return self._openings[key]

    def fit(self, tokens: Sequence[int], wanted: int) -> Fitted:
        """A prompt with room for its answer in the model's context; what changes is counted."""
        found = fitted(tokens, wanted, int(self.max_length), self.opening())
        if found.change is not None:
            self._changes[found.change] += 1
        return found

    def fit_scored(self, requests: Sequence[Scored], limit: int) -> list[Scored]:
        """Requests for log-likelihoods whose context is cut where it and the continuation exceed ``limit``; counted.

        Raises:
            UserError: a continuation that leaves its context no room.
        """
        found: list[Scored] = []
        for texts, context, continuation in requests:
            left = limit - len(continuation)
            if left < 1:
                raise UserError(
                    f"{len(continuation)} tokens are to be scored, and the model reads {limit}",
                    where="evaluation.generation.max_length",
                    fix="a longer max_length, or a model with more positions",
                )
            if len(context) > left:
                self._changes[CUT] += 1
            found.append((texts, cut(context, left, self.opening()), continuation))
        return found

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; called by the harness where it was asked to apply a chat template.

        Args:
            chat_history: messages with ``role`` and ``content``: at most one of ``system``, then one of ``user``, then
                possibly the beginning of the answer.
            add_generation_prompt: False where the last message is the beginning of the answer.

        Raises:
            UserError: several turns: the templates that rows are trained with have one.
        """
        assert self.template is not None, "asked to wrap without a template"
        messages = list(chat_history)
        answer = "" if add_generation_prompt else messages.pop()["content"]
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        if len(messages) != 1:
            raise UserError(f"a task asks in {len(messages)} turns", where="evaluation", fix="use tasks without examples")
        instruction, extra = messages[0]["content"], ""
        if self.canonical:
            instruction, _, extra = instruction.partition(BLANK_LINE)
        row = {"system": system, "instruction": instruction, "input": extra}
        encoder = self.encoder
        text = encoder.written(row) + answer
        if answer or (encoder.chat and encoder.vocabulary.spells_control((system, instruction, extra))):
            ids = encoder.prompts([row])[0]
            self._asked[text] = ids + encoder.continued(ids, [answer])[0] if answer else ids
        return text

    @property
    def encoder(self) -> Encoder:
        """Of the template."""
        if self._encoder is None or self._encoder.template != self.template:
            self._encoder = Encoder(cast("PreTrainedTokenizerBase", self.tokenizer), self.template)
            self._asked = {}
        return self._encoder

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; ``add_special_tokens=False``: without what the tokenizer puts before it."""
        if add_special_tokens is False:
            return self.encoder.vocabulary.encode([string], "start", literal=True)[0]
        return self.encode_prompts([string])[0]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that a model is asked with, as `apply_chat_template` wrote them or as a task has them."""
        encoder = self.encoder
        known = [self._asked.get(text) for text in texts]
        fresh = iter(encoder.marked([text for text, ids in zip(texts, known, strict=True) if ids is None]))
        return [next(fresh) if ids is None else ids for ids in known]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """A question and an answer to be scored, as they are taught. Without a template both are the task's text, where the
        white space before an answer belongs to it."""
        if self.template is None:
            bare = context.rstrip()
            context, continuation = bare, context[len(bare) :] + continuation
        asked = self.encode_prompts([context])[0]
        return asked, self.encoder.continued(asked, [continuation])[0]

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's length; each begins with one prefix token."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            rolled = get_rolling_token_windows(tokens, self.prefix_token_id, max_seq_len=self.max_length - 2, context_len=1)
            for context, continuation in map(make_disjoint_window, rolled):
                windows.append((("", ""), context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        return totals
