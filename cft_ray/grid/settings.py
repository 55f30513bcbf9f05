"""Settings that a grid sets and a stage obeys. Shared by the grid schema and by the specs; pure."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cft_ray.grid.words import MOST, Seed, shorthand, wrong


class Settings(BaseModel):
    """Base: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def not_identity(default: Any, description: str, **limits: Any) -> Any:
    """A pydantic field that is left out of fingerprints: where something lies, or how the same result is computed."""
    return Field(default=default, description=description, json_schema_extra={"identity": False}, **limits)


class Template(Settings):
    """How a canonical row becomes text."""

    name: Literal["alpaca", "chat", "plain", "toy"] = Field(
        description="alpaca: the Alpaca prompt; chat: the tokenizer's own chat template; plain: instruction and input "
        "joined by a blank line; toy: the toy world's compact prompt"
    )
    system: str | None = Field(default=None, description="system text where the row has none")
    date: str = Field(
        default="2024-07-26",
        pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$",
        description="the day, YYYY-MM-DD, that chat templates write where they ask for today's",
    )


TemplateChoice = Annotated[Template, shorthand("name", Template)]
"""As a grid gives it: a bare name will do."""


class ScratchModel(Settings):
    """A small model that is initialised at random, with a byte-level tokenizer."""

    architecture: Literal["mistral", "llama"] = "mistral"
    hidden_size: int = Field(default=128, gt=0, le=65_536)
    layers: int = Field(default=4, gt=0, le=1_000)
    heads: int = Field(
        default=4, gt=0, le=1_000, description="query heads; hidden_size / heads must be at least 32 (vLLM on CPU)"
    )
    kv_heads: int = Field(default=2, gt=0, le=1_000)
    intermediate_size: int = Field(default=384, gt=0, le=1_000_000)
    max_positions: int = Field(default=512, gt=0, le=MOST)

    @model_validator(mode="after")
    def _heads_fit(self) -> "ScratchModel":
        if self.hidden_size % self.heads or self.hidden_size // self.heads < 32:
            fix = "a whole number of at least 32"
            raise wrong(f"hidden_size / heads is {self.hidden_size / self.heads:g}", fix)
        if self.heads % self.kv_heads:
            raise wrong(f"{self.heads} heads share {self.kv_heads} kv_heads unevenly", "heads must be a multiple of kv_heads")
        return self


LENGTH = 2048
"""tokens of a row, unless the grid says otherwise or the model has fewer positions; the study does not say"""


class TrainingSettings(Settings):
    """One training. Defaults are Table B1 of the study (arXiv 2410.16006)."""

    learning_rate: float = Field(default=1e-6, gt=0, le=100)
    epochs: int | None = Field(default=4, gt=0, le=MOST, description="passes over the data; exclusive with `steps`")
    steps: int | None = Field(default=None, gt=0, le=MOST, description="optimizer steps; exclusive with `epochs`")
    batch_size: int = Field(
        default=16, gt=0, le=MOST, description="samples per optimizer step over all workers (packs, if `packing`)"
    )
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=10, ge=0, le=MOST, description="linear warm-up from 0; the first step changes nothing")
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    max_grad_norm: float | None = Field(default=1.0, gt=0, le=1e9, description="gradient clipping by global norm; none: off")
    precision: Literal["bf16", "fp32"] = Field(default="bf16", description="of forward and backward; master weights are fp32")
    max_length: int | None = Field(
        default=None,
        gt=0,
        le=MOST,
        description="tokens; none: 2048, or the model's positions if these are fewer; what happens to longer rows: `long_rows`",
    )
    long_rows: Literal["drop", "truncate", "refuse"] = Field(
        default="drop", description="rows over `max_length`: left out, cut at the end, or an error; always counted"
    )
    packing: int | None = Field(
        default=None, gt=0, le=MOST, description="tokens per pack; then `batch_size` counts packs. None: samples"
    )
    train_on_prompt: bool = Field(default=False, description="also take the loss on the prompt's tokens")
    # How it is computed; results agree within rounding, so these are not identity.
    padding: Literal["free", "padded"] = not_identity("free", "free: samples laid end to end; padded: right-padded rows")
    micro_batch_tokens: int = not_identity(8192, "most tokens of one forward pass of one worker", gt=0, le=MOST)
    gradient_checkpointing: bool = not_identity(False, "recompute activations in the backward pass")
    offload: Literal["none", "optimizer", "all"] = not_identity("none", "ZeRO-3 offload to CPU: optimizer, or parameters too")
    checkpoint_every: int | None = not_identity(
        None, "optimizer steps between mid-run checkpoints; none: no mid-run checkpoint", gt=0, le=MOST
    )

    def longest(self, positions: int | None) -> int:
        """Tokens of the longest row. ``positions``: of the model, as far as they are known; its training knows them."""
        if self.max_length is not None:
            return self.max_length
        return LENGTH if positions is None else min(LENGTH, positions)

    @model_validator(mode="before")
    @classmethod
    def _steps_replace_epochs(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("steps") is not None and "epochs" not in data:
            return {**data, "epochs": None}
        return data

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if (self.epochs is None) == (self.steps is None):
            raise wrong(f"the length is given {'twice' if self.steps else 'nowhere'}", "give either epochs or steps")
        return self


class GenerationSettings(Settings):
    """How a benchmark's answers are generated."""

    max_new_tokens: int | None = Field(default=None, gt=0, le=MOST, description="none: what the task says")
    temperature: float = Field(default=0.0, ge=0, le=100)
    stop: tuple[str, ...] = Field(default=(), description="stop strings beside the task's own")
    max_length: int = Field(default=4096, gt=0, le=MOST, description="tokens of prompt and answer")
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "auto"


class JudgeSettings(Settings):
    """Who compares a model's answers with the reference answers, and how it is asked (AlpacaEval).

    The judge is a model behind an OpenAI-compatible endpoint (``model``), or a local one (role ``judge`` of the stage).
    """

    model: str | None = Field(default=None, description="the judge's name at the endpoint")
    annotator: Literal["alpaca_eval_gpt4", "weighted_alpaca_eval_gpt4_turbo"] = Field(
        default="alpaca_eval_gpt4",
        description="prompt, request parameters and parser, by their name in the alpaca-eval package. alpaca_eval_gpt4: a "
        "ranking in words, each item won or lost; weighted_alpaca_eval_gpt4_turbo: the probability of the one token that "
        "names the winner, for judges that give log-probabilities",
    )
    parameters: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, description="changes to the annotator's request parameters; none takes one away"
    )
    attempts: int = Field(
        default=3, gt=0, le=1_000, description="times that an endpoint is asked again for a judgement that is malformed"
    )
    tolerate: float = Field(
        default=0.02, ge=0, lt=1, description="share of items that may stay without judgement; more fail the stage"
    )
    template: Template = Field(default=Template(name="chat"), description="how a local judge's prompt is wrapped")
    max_length: int = Field(default=8192, gt=0, le=MOST, description="tokens of prompt and judgement of a local judge")
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = Field(default="auto", description="of a local judge")
    # Where it is and what it costs: the same judge judges alike wherever it is asked.
    base_url: str | None = not_identity(None, "of the endpoint, e.g. https://api.openai.com/v1")
    key_env: str | None = not_identity(None, "environment variable that holds the endpoint's key; none: it wants no key")
    max_concurrency: int = not_identity(8, "requests under way at a time", gt=0, le=10_000)
    timeout: float = not_identity(120.0, "seconds until a request is given up and asked again", gt=0, le=86_400)
    retries: int = not_identity(
        10, "further tries of a request after a rate limit, a server's error or a time-out, with growing pauses", ge=0, le=1_000
    )
    prompt_price: float | None = not_identity(None, "of a million prompt tokens, in the cluster's currency", ge=0, le=1e9)
    completion_price: float | None = not_identity(
        None, "of a million tokens of judgements, in the cluster's currency", ge=0, le=1e9
    )


class EngineSettings(Settings):
    """How much an engine takes on at a time, by what its device can hold; results agree within rounding."""

    sequences: int | None = not_identity(
        None, "sequences at a time; none: vLLM's choice on a GPU, 128 on a CPU; hf: 32", gt=0, le=MOST
    )
    batch_tokens: int | None = not_identity(
        None, "tokens that vLLM reads at a time; none: its choice on a GPU, 4096 on a CPU", gt=0, le=MOST
    )
    gpu_memory: float = not_identity(0.85, "share of each GPU's memory that vLLM takes", gt=0, le=1)


LENGTHS = 4096
"""An engine has room for a multiple of so many tokens."""


def engine_length(max_length: int) -> int:
    """Tokens that an engine has room for, so that stages with other limits, which they keep themselves, share it."""
    return math.ceil(max_length / LENGTHS) * LENGTHS


class ReplaySampling(Settings):
    """How replay answers are sampled from the Phase 1 model."""

    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=1024, gt=0, le=MOST)
    max_length: int = Field(default=2048, gt=0, le=MOST, description="tokens of prompt and answer")
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "auto"


class EmbeddingSettings(Settings):
    """How texts become vectors."""

    text: Literal["instruction", "instruction_and_answer", "answer"] = Field(
        default="instruction", description="what is embedded of a row; its input belongs to the instruction"
    )
    sample: int | None = Field(default=500, gt=0, le=MOST, description="rows drawn from a data set, with the seed; all if none")
    max_length: int | None = Field(default=None, gt=0, le=MOST, description="tokens kept of a text; none: the model's own limit")
    seed: Seed = Field(default=0, description="of the sample")
    batch_size: int = not_identity(32, "texts in one forward pass", gt=0, le=MOST)
    block_rows: int = not_identity(
        2048,
        "rows embedded at a time: enough for batches of like length, few enough to be lost when a process dies",
        gt=0,
        le=MOST,
    )


class ActivationSettings(Settings):
    """How hidden states are taken."""

    sample: int | None = Field(default=None, gt=0, le=MOST, description="prompts per language; all if none")
    max_length: int = Field(default=2048, gt=0, le=MOST, description="tokens kept of a prompt")
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "auto"
    seed: Seed = Field(default=0, description="of the sample")
    batch_tokens: int = not_identity(8192, "most tokens in one forward pass", gt=0, le=MOST)


class DivergenceSettings(Settings):
    """On which rows two models' next-token distributions are compared."""

    sample: int | None = Field(default=200, gt=0, le=MOST, description="rows drawn from a data set, with the seed; all if none")
    max_length: int = Field(
        default=1024, gt=0, le=MOST, description="tokens of prompt and answer; longer rows are left out and counted"
    )
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "auto"
    seed: Seed = Field(default=0, description="of the sample")
    batch_tokens: int = not_identity(8192, "most tokens in one forward pass", gt=0, le=MOST)
