"""What decides a stage's result: one frozen pydantic model per stage kind.

A spec is the only thing that a stage is told about its work (its inputs' artifacts aside), and its *identity* is what
the fingerprint is taken over. Fields marked with :func:`locator` say where something lies or how it is run; they
travel with the spec and are left out of the identity. Pure: no Ray, no torch.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from cft_ray.data.accounts import ALLOWED
from cft_ray.grid.settings import (
    ActivationSettings,
    DivergenceSettings,
    EmbeddingSettings,
    EngineSettings,
    GenerationSettings,
    JudgeSettings,
    ReplaySampling,
    ScratchModel,
    Template,
    TrainingSettings,
    engine_length,
    not_identity,
)
from cft_ray.plan.fingerprint import canonical


def locator(description: str, default: Any = None) -> Any:
    """A pydantic field that is not part of the fingerprint (a path, a resource, a display name)."""
    return not_identity(default, description)


class Spec(BaseModel):
    """Base of all specs; ``kind`` names the stage, ``version`` is raised when its code changes its results."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str]
    version: ClassVar[int] = 1
    module: ClassVar[str | None] = None
    """import path of the module whose ``run`` does the stage; None: ``cft_ray.stages.{kind}``"""

    def identity(self) -> dict[str, Any]:
        """The JSON of all fields that decide the result, nested specs included."""
        return _identity(self)

    @cached_property
    def canonical(self) -> str:
        """The identity's canonical text; kept, because the stages of a large grid share few specs."""
        return canonical(self.identity())

    @property
    def loads(self) -> str | None:
        """What the stage's process has loaded at its end, besides its input `model`: a stage with the same input and the
        same text can go on with it. None: nothing that is worth keeping."""
        return None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; what is kept of the original's identity does not go along."""
        copy = super().model_copy(update=update, deep=deep)
        vars(copy).pop("canonical", None)
        return copy


def _identity(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: _identity(getattr(value, name))
            for name in fields
            if not (isinstance(extra := fields[name].json_schema_extra, dict) and extra.get("identity") is False)
        }
    if isinstance(value, dict):
        return {key: _identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    return value


class Checkpoint(BaseModel):
    """A model that the grid names instead of training it: a hub id at a revision, or a folder known by its content."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hub: str | None = Field(default=None, description="Hugging Face id")
    revision: str | None = Field(default=None, description="hub revision: a commit, tag or branch")
    digest: str | None = Field(default=None, description="SHA-256 over the folder's files, for a local model")
    path: str | None = locator("folder or URI of a local model")


class ItemsSource(BaseModel):
    """A benchmark's items: files known by their content instead of the hub, or the hub at a commit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    digest: str | None = Field(default=None, description="SHA-256 over the files' contents; None: the hub")
    revision: str | None = Field(default=None, description="commit of the hub's data set; None: the newest")
    files: dict[str, str] = locator(
        "split -> path or URI of its files, `{language}` and `*` allowed; ``scored``: the split that is scored", {}
    )


class StrategyRef(BaseModel):
    """A strategy as it travels: where its class is, its version and the values of its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    use: str = Field(description="registered name or import path `package.module:Class`")
    version: int = Field(description="the class's version number: raised when its code changes its results")
    settings: dict[str, Any] = Field(default_factory=dict)


class DatasetSpec(Spec):
    """Rows from a source to canonical rows. Inputs: none."""

    kind: ClassVar[str] = "dataset"
    version: ClassVar[int] = 4
    hub: str | None = Field(default=None, description="Hugging Face data set id")
    revision: str | None = Field(default=None, description="hub revision")
    config: str | None = Field(default=None, description="hub configuration name")
    split: str = Field(default="train", description="hub split")
    hub_files: str | None = Field(default=None, description="file pattern inside the hub repository, `{language}` allowed")
    toy: str | None = Field(default=None, description="name of a toy-world data set")
    digest: str | None = Field(default=None, description="SHA-256 over the files' contents, for local files")
    files: str | None = locator("path or URI of local files, `{language}` allowed")
    columns: dict[str, str] = Field(
        description="canonical column (instruction, input, output, system, id, language) -> the source's column"
    )
    format: str | None = Field(default=None, description="that names the columns: some may be absent; None: the grid names them")
    languages: tuple[str, ...] = Field(description="ISO 639-1 codes, in the order in which they are read")
    rows: int | None = Field(default=None, description="rows kept per language (a seeded sample); all if none")
    seed: int = Field(default=0, description="seed of the sample of `rows`, and of toy data")
    allow_left_out: float = locator("share of the rows that may be left out", ALLOWED)


class FinetuneSpec(Spec):
    """One training. Inputs: `data`; `model` unless `scratch` or `checkpoints["model"]`; what the strategy asks for."""

    kind: ClassVar[str] = "finetune"
    version: ClassVar[int] = 5
    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict, description="named models by role: `model`")
    scratch: ScratchModel | None = Field(default=None, description="architecture to initialise, for training from scratch")
    template: Template = Field(description="how a row becomes text")
    training: TrainingSettings
    strategy: StrategyRef | None = Field(default=None, description="None: plain full fine-tuning")
    seed: int = 0
    data: str = locator("name of its data set in the grid, for messages", "")
    allow_left_out: float = locator("share of its rows that may be left out", ALLOWED)


def _engine(checkpoints: dict[str, Checkpoint], dtype: str, max_length: int, engine: EngineSettings) -> str:
    """What a vLLM engine is, the model's artifact aside."""
    named = {role: checkpoint.model_dump(mode="json") for role, checkpoint in checkpoints.items() if role == "model"}
    lengths = {"dtype": dtype, "max_length": engine_length(max_length)}
    return canonical({**named, **lengths, "engine": engine.model_dump(mode="json")})


class ReplaySpec(Spec):
    """Answers of `model` to prompts. Inputs: `model` or `checkpoints["model"]`, `prompts`, `target` (its size counts)."""

    kind: ClassVar[str] = "replay"
    version: ClassVar[int] = 4
    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    ratio: float = Field(description="rows to generate as a fraction of the rows of `target`")
    template: Template
    sampling: ReplaySampling
    seed: int = 0
    engine: EngineSettings = Field(default=EngineSettings(), json_schema_extra={"identity": False})

    @property
    def loads(self) -> str | None:
        """The engine's settings."""
        return _engine(self.checkpoints, self.sampling.dtype, self.sampling.max_length, self.engine)


class DriftSpec(Spec):
    """Norms of the difference of two models. Inputs: `left`, `right`, each possibly in `checkpoints` instead."""

    kind: ClassVar[str] = "drift"
    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)


class EvaluateSpec(Spec):
    """One benchmark of one model. Inputs: `model` or `checkpoints["model"]`; `data` where a data set artifact is scored."""

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 6
    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    benchmark: str = Field(description="name in the tables, e.g. toy_letters, ifeval")
    ability: Literal["TA", "LA"]
    tasks: dict[str, str] = Field(description="language -> lm-evaluation-harness task")
    metric: str = Field(description="the metric that the results table shows")
    template: Template | None = Field(default=None, description="how a prompt is wrapped; None: as the task gives it")
    generation: GenerationSettings
    limit: int | None = Field(default=None, description="items per task; all if none")
    backend: Literal["vllm", "hf"] = "vllm"
    judge: JudgeSettings | None = Field(
        default=None, description="compares answers; a local judge is the input or the checkpoint `judge`. None: nothing does"
    )
    seed: int = 0
    items: ItemsSource | None = Field(default=None, description="None: as the tasks say, from the hub")
    nltk_data: str | None = locator("folder or URI of nltk's data, for tasks that need it")
    engine: EngineSettings = EngineSettings()

    @property
    def loads(self) -> str | None:
        """The engine's settings; a local judge takes the model's place, and transformers loads anew."""
        if self.backend != "vllm" or (self.judge is not None and self.judge.model is None):
            return None
        return _engine(self.checkpoints, self.generation.dtype, self.generation.max_length, self.engine)


class EmbedSpec(Spec):
    """Sentence embeddings of rows. Inputs: `data`, a `dataset` or `replay` artifact."""

    kind: ClassVar[str] = "embed"
    version: ClassVar[int] = 2
    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict, description="`embedder`; none: lexical vectors")
    settings: EmbeddingSettings


class SimilaritySpec(Spec):
    """DES of two data sets, with its uncertainty. Inputs: `left`, `right`, two `embed` artifacts."""

    kind: ClassVar[str] = "similarity"
    resamples: int = Field(default=1000, gt=0, description="bootstrap resamples of each side's rows")
    seed: int = Field(default=0, description="of the resamples")


class ActivationsSpec(Spec):
    """Hidden states of a model, a prompt and layer. Inputs: `prompts`; `model` or `checkpoints["model"]`."""

    kind: ClassVar[str] = "activations"
    version: ClassVar[int] = 6
    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    template: Template | None = Field(default=None, description="how a prompt is wrapped; None: as it is")
    settings: ActivationSettings


class CovarianceSpec(Spec):
    """Change of the activations' covariance between two models, a layer. Inputs: `left`, `right`, two `activations`."""

    kind: ClassVar[str] = "covariance"


class DivergenceSpec(Spec):
    """KL(left‖right) of next-token distributions. Inputs: `data`; `left`, `right`, each possibly in `checkpoints` instead."""

    kind: ClassVar[str] = "divergence"
    version: ClassVar[int] = 6
    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    template: Template = Field(description="how a row becomes text")
    settings: DivergenceSettings


class ReplayQualitySpec(Spec):
    """What generated replay is like. Inputs: `replay`; `english`, its prompts' rows; `model` or `checkpoints["model"]`."""

    kind: ClassVar[str] = "replay_quality"
    version: ClassVar[int] = 6
    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    template: Template = Field(description="how a row becomes text, for the perplexity")
    max_length: int = Field(default=2048, gt=0, description="tokens of prompt and answer; longer rows have no perplexity")
    seed: int = Field(default=0, description="of the pairs that self-BLEU is taken over")


SPECS: dict[str, type[Spec]] = {
    spec.kind: spec
    for spec in (
        DatasetSpec,
        FinetuneSpec,
        ReplaySpec,
        DriftSpec,
        EvaluateSpec,
        EmbedSpec,
        SimilaritySpec,
        ActivationsSpec,
        CovarianceSpec,
        DivergenceSpec,
        ReplayQualitySpec,
    )
}
