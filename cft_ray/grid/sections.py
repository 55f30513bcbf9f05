"""The sections of a grid file, as pydantic models: what may be written and what it means.

They describe what a user writes, not what a stage obeys: shorthands (``strategies: [none]``, ``template: toy``) are
unfolded here, values that are settled only later (overrides, swept lists) stay plain. References between sections
are checked in `cft_ray.grid.checks`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from cft_ray.data.formats import FORMATS
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.judge import Judge
from cft_ray.grid.loggers import Logger
from cft_ray.grid.settings import (
    EngineSettings,
    ReplaySampling,
    ScratchModel,
    Settings,
    Template,
    TemplateChoice,
    TrainingSettings,
)
from cft_ray.grid.words import (
    MOST,
    MOST_WORKERS,
    Language,
    Name,
    PlaceName,
    Repository,
    Revision,
    shorthand,
    wrong,
)


def _named_template(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) and value not in ("task", "model") else value


_template_word = BeforeValidator(_named_template, json_schema_input_type=Literal["task", "model"] | str | Template)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class _Overrides:
    """Metadata of a mapping that holds some of a model's settings; what it may hold is said in the JSON Schema."""

    def __init__(self, model: type[Settings], *, swept: bool = False, phases: bool = False) -> None:
        self.model, self.swept, self.phases = model, swept, phases

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        for name, schema in self.model.model_json_schema()["properties"].items():
            plain = {key: value for key, value in schema.items() if key not in ("default", "description", "title")}
            values = {"anyOf": [plain, {"type": "array", "items": plain, "minItems": 1}]} if self.swept else plain
            properties[name] = {key: schema[key] for key in ("description", "title") if key in schema} | values
        whole: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        if self.phases:
            whole["properties"] = properties | {phase: {**whole, "properties": dict(properties)} for phase in PHASES}
        return whole


PHASES = ("phase1", "phase2")
"""Keys inside `training` whose settings count for one phase only."""

TrainingSection = Annotated[dict[str, Any], _Overrides(TrainingSettings, swept=True, phases=True)]
TrainingOverrides = Annotated[dict[str, Any], _Overrides(TrainingSettings, swept=True)]
PlainTrainingOverrides = Annotated[dict[str, Any], _Overrides(TrainingSettings)]
SamplingOverrides = Annotated[dict[str, Any], _Overrides(ReplaySampling, swept=True)]


class Storage(Settings):
    """Where artifacts and tables lie."""

    uri: PlaceName = Field(min_length=1, description="a folder, `s3://…` or `gs://…`; environment variables hold the credentials")


class StageResources(Settings):
    """What a stage is given; decides no result."""

    workers: int = Field(default=1, gt=0, le=MOST_WORKERS, description="processes; a training's batch is split over them")
    cpus: float = Field(default=1.0, ge=0.001, le=10_000, description="CPUs of each worker")
    gpus: float = Field(default=0.0, ge=0, le=1_000, description="GPUs of each worker; a whole number, or a share of one")
    hours: float | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="most that its work may take, then it fails; none: 20 times its estimate, and 24 at least",
    )
    still_minutes: float = Field(
        default=60.0, gt=0, le=1e6, description="without progress after which it is killed and tried again, twice"
    )

    @model_validator(mode="after")
    def _whole_devices(self) -> "StageResources":
        if self.gpus > 1 and self.gpus % 1:
            raise wrong(f"{self.gpus:g} GPUs cannot be given to a process", "a whole number, or a share of one")
        return self


class CheckpointTraining(Settings):
    """How a checkpoint of a model is made."""

    data: str = Field(description="a name among `datasets`")
    training: PlainTrainingOverrides = Field(default_factory=dict, description="changes to the grid's `training`; not swept")
    resources: StageResources | None = Field(default=None, description="of this training; none: `resources.finetune`")


class CheckpointSource(Settings):
    """A checkpoint of a model: published (`hub`), local (`path`), or made here (`scratch` or `start`, with `train`)."""

    hub: Repository | None = Field(default=None, description="Hugging Face model id")
    revision: Revision | None = Field(default=None, description="commit, tag or branch of `hub`; a commit cannot move")
    path: PlaceName | None = Field(default=None, description="folder or URI of a model in Hugging Face's form")
    scratch: ScratchModel | None = Field(default=None, description="a small model, initialised at random; needs `train`")
    start: str | None = Field(default=None, description="another checkpoint of this model to train on from; needs `train`")
    train: CheckpointTraining | None = Field(default=None, description="the training that makes it")
    template: TemplateChoice | None = Field(default=None, description="how this checkpoint is asked; none: the grid's")

    @model_validator(mode="after")
    def _one_origin(self) -> "CheckpointSource":
        origins = [name for name in ("hub", "path", "scratch", "start") if getattr(self, name) is not None]
        if len(origins) != 1:
            raise wrong(f"{' and '.join(origins) or 'no origin'} given", "give exactly one of hub, path, scratch, start")
        if (self.train is not None) != (origins[0] in ("scratch", "start")):
            what = f"{origins[0]} with `train`" if self.train is not None else f"{origins[0]} without `train`"
            raise wrong(what, "`train` goes with `scratch` and `start`, and only with them")
        if self.revision is not None and self.hub is None:
            raise wrong("a revision of no repository", "`revision` goes with `hub`")
        return self


class SizeHint(Settings):
    """The size of a data set, for estimates where it is not known; changes no result."""

    rows: int = Field(gt=0, le=10**12, description="rows of all languages together")
    tokens_per_row: float | None = Field(default=None, gt=0, le=1e9, description="mean tokens of prompt and answer")


class DatasetSource(Settings):
    """A data set: from the hub, from files, from the toy world, or still to be supplied (`missing`)."""

    hub: Repository | None = Field(default=None, description="Hugging Face data set id")
    revision: Revision | None = Field(default=None, description="commit, tag or branch of `hub`; a commit cannot move")
    config: str | None = Field(default=None, description="hub configuration name; `{language}` and `{flores}` allowed")
    split: str = Field(default="train", min_length=1, description="hub split")
    hub_files: str | None = Field(
        default=None, description="file pattern inside the hub repository; `{language}`, `{flores}` and `*` allowed"
    )
    files: PlaceName | None = Field(
        default=None,
        description="path or URI of local files (parquet, json, jsonl, csv); `{language}` (ISO 639-1), `{flores}` (as in "
        "deu_Latn) and `*` allowed",
    )
    toy: str | None = Field(default=None, description="name of a toy-world data set")
    missing: str | None = Field(
        default=None,
        description="why it cannot be had as it is, and what to do: the grid can be planned, and runs once `files`, `hub` or "
        "`toy` is given, e.g. by `--set datasets.NAME.files=…`",
    )
    languages: tuple[Language, ...] = Field(min_length=1, description="ISO 639-1 codes, in the order in which they are read")
    format: Literal["alpaca", "orca", "canonical", "messages", "sharegpt"] | None = Field(
        default=None,
        description="what its columns are called; messages, sharegpt: each row is a conversation (OpenAI's role and content; "
        "ShareGPT's from and value). None, and no `columns`: what the columns of its files show",
    )
    columns: dict[str, str] | None = Field(
        default=None,
        description="instead of `format`: canonical column -> its column (`turns[0]`: the first item of a list; `{language}`, "
        "`{flores}`: a column for each language); without `output` it holds prompts, and nothing is trained on it",
    )
    rows: int | None = Field(default=None, gt=0, le=MOST, description="rows kept per language, a seeded sample; all if none")
    allow_left_out: float | None = Field(
        default=None, ge=0, le=1, description="share of its rows that may be left out; none: the grid's; changes no result"
    )
    english: str | None = Field(default=None, description="its English counterpart among `datasets`, for replay")
    template: TemplateChoice | None = Field(
        default=None, description="how its rows become text; none: the checkpoint's, else the grid's"
    )
    size_hint: SizeHint | None = Field(default=None, description="its size, for estimates where it is not known")

    @model_validator(mode="after")
    def _one_origin(self) -> "DatasetSource":
        origins = [name for name in ("hub", "files", "toy") if getattr(self, name) is not None]
        if len(origins) > 1 or (not origins and self.missing is None):
            raise wrong(f"{' and '.join(origins) or 'no origin'} given", "give exactly one of hub, files, toy")
        if self.hub is None and (self.revision or self.config or self.hub_files):
            raise wrong("no repository is named", "`revision`, `config` and `hub_files` go with `hub`")
        if self.format is not None and self.columns is not None:
            raise wrong("`format` and `columns` both say what the columns are", "give either `format` or `columns`")
        if self.toy is not None and (self.format or self.columns):
            raise wrong("a toy data set has its own columns", "leave `format` and `columns` out")
        if self.columns is not None:
            if unknown := set(self.columns) - set(FORMATS["canonical"]):
                raise wrong(f"unknown canonical column {min(unknown)!r}", f"known: {', '.join(FORMATS['canonical'])}")
            if "instruction" not in self.columns:
                raise wrong("no column of instructions", "`columns` must say where 'instruction' is")
        if len(set(self.languages)) < len(self.languages):
            raise wrong("a language is named twice", "name each language once")
        return self


class Pair(Settings):
    """Phase 1 and Phase 2 of a cell."""

    phase1: str = Field(description="a data set (the base is trained on it) or a checkpoint of the models (already trained)")
    phase2: str = Field(description="a data set")


class StrategyChoice(Settings):
    """A mitigation: a registered one by its name, or a variant of one, or a class of your own."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Name = Field(description="what the results call it")
    use: str | None = Field(default=None, description="registered name or import path `package.module:Class`; none: `name`")
    training: TrainingOverrides = Field(default_factory=dict, description="changes to the Phase 2 training, e.g. LoRA's rate")

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that belong to the strategy itself; lists are swept."""
        return self.model_extra or {}


class BenchmarkChoice(Settings):
    """A benchmark by its name, possibly changed, or one declared in place (`ability`, `tasks`, `metric`)."""

    name: Name = Field(description="what the results call it")
    use: str | None = Field(default=None, description=f"a known benchmark ({', '.join(BENCHMARKS)}); none: `name`")
    ability: Literal["TA", "LA"] | None = Field(default=None, description="task ability or language ability")
    tasks: dict[Language, str] | None = Field(default=None, description="language -> lm-evaluation-harness task or group")
    languages: tuple[Language, ...] | None = Field(
        default=None, description="which of its languages, in this order; none: those of the study"
    )
    metric: str | None = Field(default=None, description="harness metric shown in the results")
    data: str | None = Field(default=None, description="toy-world data set that holds its items")
    limit: int | None = Field(default=None, gt=0, le=MOST, description="items per task; none: the evaluation's limit")
    generation: dict[str, Any] = Field(default_factory=dict, description="changes to how answers are generated")
    template: TemplateChoice | None = Field(default=None, description="none: the evaluation's")


class Evaluation(Settings):
    """What is measured, of every model of the grid."""

    benchmarks: list[Annotated[BenchmarkChoice, shorthand("name", BenchmarkChoice)]] = Field(
        min_length=1, description="names, or mappings with `name`"
    )
    limit: int | None = Field(default=None, gt=0, le=MOST, description="items per task; all if none")
    backend: Literal["vllm", "hf"] = Field(default="vllm", description="the engine below lm-evaluation-harness")
    generation: dict[str, Any] = Field(
        default_factory=dict, description="changes to how answers are generated, for all benchmarks"
    )
    template: Annotated[Literal["task", "model"] | Template, _template_word] = Field(
        default="model",
        description="how a prompt is wrapped. task: as the task gives it; model: in the words in which the model was "
        "taught (a checkpoint's own template, where it has one); or a template for all",
    )
    judge: Judge | None = Field(
        default=None, description="compares answers, where a benchmark needs that; none: such benchmarks are skipped"
    )
    evaluate_base: bool = Field(default=True, description="also score the base models (forward transfer needs it)")
    data: dict[Name, PlaceName | dict[str, PlaceName]] = Field(
        default_factory=dict,
        description="benchmark -> the files that hold its items, instead of the hub: a Parquet or JSON-lines file, a folder, or "
        "the URI of either; `{language}` and `*` allowed. The items that are scored, or a mapping split -> files",
    )
    data_folder: PlaceName | None = Field(
        default=None,
        min_length=1,
        description="folder or URI that relative paths in `data` and `nltk_data` start from (`./…` starts where you are); "
        "none: where you are",
    )
    revisions: dict[Name, Revision] = Field(
        default_factory=dict, description="benchmark -> commit of its hub data set; none: the newest, and recorded"
    )
    nltk_data: PlaceName | None = Field(
        default=None,
        min_length=1,
        description="folder or URI (a relative one starts from `data_folder`) of nltk's data with tokenizers/punkt_tab, which "
        "ifeval needs; none, or not there: where nltk looks (NLTK_DATA), and its download",
    )
    engine: EngineSettings = Field(default=EngineSettings(), description="batch and memory of the engine")


class Cluster(Settings):
    """What it runs on, for admission and estimates; decides no result."""

    device: str | None = Field(
        default=None, description="accelerator, e.g. A100-80GB, H100, H200; none: estimates stay without time"
    )
    price_per_device_hour: float | None = Field(default=None, ge=0, le=1e9, description="what one device costs per hour")
    currency: str = Field(default="USD", description="of the price")
    max_devices: int | None = Field(default=None, gt=0, le=MOST, description="most devices that the cluster can have at once")
    mfu: float = Field(default=0.4, gt=0, le=1, description="assumed share of the device's peak FLOP/s that training reaches")
    characters_per_token: float = Field(
        default=4.0, gt=0, le=1_000, description="assumed, where only the characters of a data set are known"
    )


Values = Annotated[list[str | int], BeforeValidator(_listed, json_schema_input_type=str | int | list[str | int])]


class Filter(Settings):
    """Which cells: all of its fields must match, each by one of its values (`*`, `?` and `[…]` as in file names)."""

    model: Values | None = Field(default=None, description="one, or a list")
    phase1: Values | None = Field(default=None, description="one, or a list")
    phase2: Values | None = Field(default=None, description="one, or a list")
    strategy: Values | None = Field(default=None, description="one, or a list")
    seed: Values | None = Field(default=None, description="one, or a list")
    settings: dict[str, Any] = Field(default_factory=dict, description="swept setting (as in a cell's name) -> value or list")


StageKind = Literal[
    "dataset",
    "finetune",
    "replay",
    "drift",
    "evaluate",
    "embed",
    "similarity",
    "activations",
    "covariance",
    "divergence",
    "replay_quality",
]
Models = dict[Name, dict[Name, CheckpointSource]]
Datasets = dict[Name, DatasetSource]
Strategies = list[Annotated[StrategyChoice, shorthand("name", StrategyChoice)]]
Loggers = list[Annotated[Logger, shorthand("name", Logger)]]
StorageChoice = Annotated[Storage, shorthand("uri", Storage)]
