"""Answers of one model to many prompts, by the one engine of this process (`cft_ray.generation.engine`).

The engine is the one that evaluation asks, so a model that has just been evaluated is not loaded again, nor the other way
round. Where several engines are asked for, see `cft_ray.generation.batches`; an answer is the same on either road.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from cft_ray.generation import engine
from cft_ray.generation.requests import Answer, Prompt, parameters
from cft_ray.generation.settings import shared_arguments
from cft_ray.grid.settings import EngineSettings, ReplaySampling

WAITING = 1024
"""Prompts that are with the engine at a time: more than it runs at once, so that it never waits for us."""


def answers(
    model: str,
    prompts: Sequence[Prompt],
    sampling: ReplaySampling,
    limits: EngineSettings,
    ends: Sequence[int],
    gpus: float = 0,
) -> Iterator[list[Answer]]:
    """Ask ``model`` all prompts.

    Args:
        model: local Hugging Face folder.
        prompts: what to ask.
        sampling: temperature, nucleus, length and dtype.
        limits: of the engine's batch and memory.
        ends: ids at which an answer ends.
        gpus: GPUs that the model is split over, where there are any; of less than one it takes its share.

    Yields:
        answers in the order in which they are finished, those of one step of the engine together.

    Raises:
        UserError: the folder is no model.
    """
    loaded = engine.load(shared_arguments(model, sampling, limits, gpus))
    from vllm import SamplingParams

    waiting = list(reversed(prompts))
    asked: dict[str, int] = {}
    """the engine's name of an unfinished request -> index"""
    try:
        while waiting or asked:
            fresh = [waiting.pop() for _ in range(min(WAITING - len(asked), len(waiting)))]
            if fresh:
                tokens: list[Any] = [{"prompt_token_ids": prompt.tokens} for prompt in fresh]
                options = [SamplingParams(**parameters(sampling, prompt.seed, prompt.new_tokens, ends)) for prompt in fresh]
                names = loaded.enqueue(tokens, options, use_tqdm=False)
                asked |= zip((name.partition("-")[0] for name in names), (prompt.index for prompt in fresh), strict=True)
            done = [output for output in loaded.llm_engine.step() if output.finished]
            if done:
                yield [_answer(asked.pop(output.request_id), output) for output in done]
    finally:
        if asked:  # whoever took the answers has stopped: the next stage finds an idle engine
            loaded.llm_engine.abort_request(list(asked))


def _answer(index: int, output: Any) -> Answer:
    given = output.outputs[0]
    return Answer(index, given.text, len(given.token_ids), given.finish_reason)
