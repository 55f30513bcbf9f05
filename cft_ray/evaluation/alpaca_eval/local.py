"""A judge in a vLLM engine of this process.

It is asked as an endpoint would be, with two differences: where the package compares the probabilities of two tokens, the
engine is asked for just those (an endpoint shows the likeliest few, in which a weak judge may have neither); and a judgement
that is malformed is not asked for again, because the engine would say the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cft_ray.data.encoding import Encoder
from cft_ray.errors import UserError
from cft_ray.evaluation.alpaca_eval.annotations import Annotation, Annotations
from cft_ray.evaluation.alpaca_eval.annotator import Annotator, Question
from cft_ray.evaluation.alpaca_eval.endpoint import LONGEST_WORDS
from cft_ray.evaluation.alpaca_eval.judging import Tally, taken_up
from cft_ray.generation import engine
from cft_ray.generation.settings import end_tokens, prepare_environment, shared_arguments
from cft_ray.grid.settings import EngineSettings, JudgeSettings

TOGETHER = 128
"""Items given to the engine at a time: this much is lost at most by a death."""
_OF_AN_ENDPOINT = ("logprobs", "top_logprobs")


def judge_locally(
    folder: str,
    questions: Sequence[Question],
    annotator: Annotator,
    annotations: Annotations,
    settings: JudgeSettings,
    limits: EngineSettings,
    gpus: float = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tally:
    """Ask about every item that has no judgement yet; afterwards ``annotations.found`` has them.

    Args:
        folder: local Hugging Face folder of the judge.
        questions: about all items.
        annotator: prompts and parser.
        annotations: where judgements are kept; read here.
        settings: the judge's template, length, dtype, and how many failures are tolerated.
        limits: of the engine's batch and memory.
        gpus: that the judge is split over, where there are any.
        progress: told the numbers of judgements that are there and of items.

    Raises:
        UserError: the judge cannot be loaded; a request parameter that vLLM does not know.
        StageFailed: too many items stay without judgement.
    """
    tally, waiting = taken_up(questions, annotations, settings, final=("refused", "malformed"))
    progress(len(questions) - len(waiting), len(questions))
    if not waiting:
        return tally
    judge = _Local(folder, annotator, settings, limits, gpus)
    for start in range(0, len(waiting), TOGETHER):
        for annotation in judge.judge(waiting[start : start + TOGETHER]):
            annotations.keep(annotation)
            tally.add(annotation.failure, annotation.said)
        progress(len(annotations.found), len(questions))
    return tally


class _Local:
    def __init__(self, folder: str, annotator: Annotator, settings: JudgeSettings, limits: EngineSettings, gpus: float) -> None:
        prepare_environment()
        self._engine = engine.load(shared_arguments(folder, settings, limits, gpus))
        self._tokenizer: Any = self._engine.get_tokenizer()
        self._annotator, self._encoder = annotator, Encoder(self._tokenizer, settings.template)
        self._ids = _spelt(self._tokenizer, annotator.tokens)
        asked = {name: value for name, value in annotator.parameters.items() if name not in _OF_AN_ENDPOINT}
        if self._ids:
            asked |= {"max_tokens": 1, "logprob_token_ids": [index for ids in self._ids.values() for index in ids]}
        self._parameters = _parameters({"stop_token_ids": list(end_tokens(folder, self._encoder.ends)), **asked})
        limit = min(settings.max_length, self._engine.llm_engine.model_config.max_model_len)
        self._room = limit - (self._parameters.max_tokens or 1)

    def judge(self, questions: Sequence[Question]) -> list[Annotation]:
        """Judgements of some items, in their order."""
        tokens = self._encoder.prompts([self._row(question) for question in questions])
        fitting: list[Any] = [{"prompt_token_ids": ids} for ids in tokens if len(ids) <= self._room]
        outputs = iter(self._engine.generate(fitting, self._parameters, use_tqdm=False) if fitting else [])
        annotations = []
        for question, ids in zip(questions, tokens, strict=True):
            if len(ids) > self._room:
                said = f"{len(ids)} tokens do not fit; there is room for {self._room}"
                annotations.append(Annotation(question.number, question.digest, None, "refused", said))
                continue
            output = next(outputs).outputs[0]
            preference = self._annotator.preference(question, self._choice(output))
            failure = "malformed" if preference is None else None
            said = output.text[:LONGEST_WORDS]
            annotations.append(
                Annotation(question.number, question.digest, preference, failure, said, len(ids), len(output.token_ids))
            )
        return annotations

    @staticmethod
    def _row(question: Question) -> dict[str, str]:
        by_role = {message["role"]: message["content"] for message in question.messages}
        return {"system": by_role.get("system", ""), "instruction": by_role["user"]}

    def _choice(self, output: Any) -> Mapping[str, Any]:
        """An engine's output in the form of an endpoint's choice."""
        if not self._ids:
            return {"message": {"content": output.text}}
        given = output.logprobs[0]
        top = [
            {"token": token, "logprob": float(np.logaddexp.reduce([given[index].logprob for index in ids if index in given]))}
            for token, ids in self._ids.items()
        ]
        return {"logprobs": {"content": [{"top_logprobs": top}]}}


def _spelt(tokenizer: Any, tokens: Sequence[str]) -> dict[str, list[int]]:
    """Token -> the ids that spell it, with and without white space before it.

    Raises:
        UserError: the vocabulary has none.
    """
    if not tokens:
        return {}
    found: dict[str, list[int]] = {token: [] for token in tokens}
    for index, text in enumerate(tokenizer.batch_decode([[index] for index in range(len(tokenizer))])):
        if text.strip() in found:
            found[text.strip()].append(index)
    for token, ids in found.items():
        if not ids:
            raise UserError(
                f"the judge has no token {token!r}", where="evaluation.judge", fix="use the annotator alpaca_eval_gpt4"
            )
    return found


def _parameters(asked: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    try:
        return SamplingParams(**asked)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"vLLM refuses the request parameters ({error})",
            where="evaluation.judge.parameters",
            fix="max_tokens, temperature, top_p, seed …: those of vLLM's SamplingParams",
        ) from error
