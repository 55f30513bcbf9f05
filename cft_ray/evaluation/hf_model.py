"""A transformers model as a model of lm-evaluation-harness: the harness' own, with our prompts, sequence begin and budget."""

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from cft_ray.errors import UserError
from cft_ray.evaluation.templated import Scored, Templated
from cft_ray.generation.budget import NEW_TOKENS, cut
from cft_ray.generation.settings import device, end_tokens
from cft_ray.models import function, loading
from cft_ray.models.config import positions
from cft_ray.models.finite import not_finite
from cft_ray.models.limits import within

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH_SIZE = 32
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the most new tokens that the harness knows."""


class OnlyNumbers(LogitsProcessor):
    """Changes nothing; logits that are no numbers end the generation.

    Args:
        model: its folder, for the message.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The scores, [texts, vocabulary], as they are.

        Raises:
            UserError: NaN or infinity among them.
        """
        # A model may forbid tokens by minus infinity.
        if not bool((scores < math.inf).all()):
            raise not_finite(self.model)
        return scores


class HfModel(Templated, HFLM):
    """Answers and log-likelihoods by transformers: slower than vLLM, and what it is checked against.

    Args:
        model: local Hugging Face folder.
        dtype: ``auto``: the checkpoint's on a GPU, float32 on a CPU.
        max_length: tokens of prompt and answer.
        batch_size: sequences at a time; none: `BATCH_SIZE`.

    Raises:
        UserError: transformers cannot load the model.
    """

    def __init__(self, model: str, *, dtype: str = "auto", max_length: int, batch_size: int | None = None) -> None:
        on = device()
        causal = loading.load(model, dtype="float32" if dtype == "auto" and on == "cpu" else dtype).eval()
        causal.to(on)  # type: ignore[arg-type]
        function.settle(causal, model)
        # Penalties and forbidden words of `generation_config.json` are for chats, not for measuring; vLLM takes no notice either.
        causal.generation_config = GenerationConfig()
        arguments: dict[str, Any] = {
            "pretrained": causal,
            "tokenizer": model,
            "max_length": within(positions(causal.config), max_length),
            "batch_size": batch_size or BATCH_SIZE,
        }
        self._folder = model
        try:
            super().__init__(**arguments)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"transformers cannot load the tokenizer ({error})", where=model, fix="check the folder's files"
            ) from error
        self.pretrained = model

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers in the requests' order, each with the room that its prompt leaves (`cft_ray.generation.budget`).

        The harness batches requests of like settings, so answers that get less room than asked for go in small batches.

        Raises:
            UserError: predictions that are no numbers.
        """
        questions: list[Any] = [request.args for request in requests]
        contexts = self.encode_prompts([text for text, _ in questions])
        fitting: list[Instance] = []
        for request, tokens, (text, asked) in zip(requests, contexts, questions, strict=True):
            options: dict[str, Any] = dict(normalize_gen_kwargs(asked, NEW_TOKENS))
            kept = {name: value for name, value in asked.items() if name not in _LENGTHS}
            stop = [text for text in options["until"] if text]
            changed = {**kept, "until": stop, "max_gen_toks": self.fit(tokens, options["max_gen_toks"]).new_tokens}
            fitting.append(Instance("generate_until", request.doc, (text, changed), request.idx))
        return cast(Any, super()).generate_until(fitting, disable_tqdm)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str | None:
        """Text of token ids. A single id has none: the harness asks for that of the end of sequence, to end an answer where its
        spelling stands in the text. Answers end at ids (`_model_generate`), and text is text."""
        return None if isinstance(tokens, int) else cast(Any, super()).tok_decode(tokens, skip_special_tokens)

    def _model_generate(self, context: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        """[texts, tokens] contexts and answers; from an answer's end on there are end-of-sequence tokens."""
        ends = end_tokens(self._folder, self.encoder.ends)
        if named.get("do_sample"):
            named.setdefault("top_k", 0)  # transformers' own default is the 50 likeliest tokens
        found = cast(Any, super())._model_generate(
            context,
            *arguments,
            **named,
            eos_token_id=list(ends),
            logits_processor=LogitsProcessorList([OnlyNumbers(self._folder)]),
        )
        answers = found[:, context.shape[1] :]  # a view
        ended = torch.isin(answers, torch.tensor(ends, device=answers.device)).cumsum(1) > 0
        answers[ended] = self.tokenizer.eos_token_id
        return found

    def _loglikelihood_tokens(self, requests: "Sequence[Scored]", *arguments: Any, **named: Any) -> list[tuple[float, bool]]:
        # The last token is scored and not read.
        found = cast(Any, super())._loglikelihood_tokens(self.fit_scored(requests, int(self.max_length) + 1), *arguments, **named)
        if not all(math.isfinite(value) for value, _ in found):
            raise not_finite(self._folder)
        return found

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, [texts, longest], padded on the given side."""
        ids: list[list[int]] = self.encode_prompts(strings)
        if left_truncate_len:
            ids = [cut(tokens, left_truncate_len, self.opening()) for tokens in ids]
        encoded: Any = self.tokenizer.pad({"input_ids": ids}, padding=True, padding_side=padding_side, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]
