"""The grid's section `insight`: what is measured of data sets and models beside the scores.

A part that is not written has its defaults, and ``false`` leaves it out: ``insight: {}`` measures everything. Defaults
that depend on the grid (which embedding model, which prompts) are settled here too: a grid whose data are all toy gets
what needs no download, any other what the study used (arXiv 2410.16006).
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cft_ray.data.languages import FLORES
from cft_ray.data.toy import TOY
from cft_ray.grid.sections import DatasetSource
from cft_ray.grid.settings import ActivationSettings, DivergenceSettings, EmbeddingSettings, Settings, Template

LABSE = "sentence-transformers/LaBSE"
"""the study's embedding model"""


def _switch(value: Any) -> Any:
    return {} if value is True else None if value is False else value


_part = BeforeValidator(_switch, json_schema_input_type=bool | dict[str, Any])


class Embedder(Settings):
    """A sentence-transformers model: published or local."""

    hub: str | None = Field(default=None, description="Hugging Face model id")
    revision: str | None = Field(default=None, description="commit, tag or branch of `hub`; a commit cannot move")
    path: str | None = Field(default=None, description="folder or URI of a sentence-transformers model")

    @model_validator(mode="after")
    def _one_origin(self) -> "Embedder":
        if (self.hub is None) == (self.path is None):
            raise ValueError("give either hub or path")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` goes with `hub`")
        return self


def _named_embedder(value: Any) -> Any:
    return {"hub": value} if isinstance(value, str) and value != "lexical" else value


def _named_template(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) and value not in ("grid", "none") else value


EmbedderChoice = Annotated[Literal["lexical"] | Embedder, BeforeValidator(_named_embedder, json_schema_input_type=str | Embedder)]
PromptTemplate = Annotated[
    Literal["grid", "none"] | Template, BeforeValidator(_named_template, json_schema_input_type=str | Template)
]


class EmbeddingPart(EmbeddingSettings):
    """Embedding similarity (DES) of data sets."""

    model: EmbedderChoice | None = Field(
        default=None,
        description="a hub id, `{hub, revision}`, `{path}`, or `lexical`: character n-grams, which need no download and see "
        f"words, not meaning. None: {LABSE}; lexical where all data sets are toy",
    )
    replay_text: Literal["instruction", "instruction_and_answer", "answer"] = Field(
        default="answer", description="what is embedded where generated replay is compared; its instructions are not its own"
    )
    resamples: int = Field(default=1000, gt=0, description="bootstrap resamples of each side's rows")

    @property
    def settings(self) -> EmbeddingSettings:
        """What an `embed` stage obeys."""
        return EmbeddingSettings(**{name: getattr(self, name) for name in EmbeddingSettings.model_fields})


class ActivationPart(ActivationSettings):
    """Hidden states of the models over prompts, and over parallel sentences."""

    prompts: str | DatasetSource | None = Field(
        default=None,
        description="a name among `datasets`, or a source as there (`output` may be absent). None: MT-Bench's first turns; "
        "the toy world's prompts where all data sets are toy",
    )
    parallel: str | Literal[False] | DatasetSource | None = Field(
        default=None,
        description="sentences that say the same in several languages, their ids alike up to `:{language}`; as `prompts`. "
        "None: FLORES+; the toy world's where all data sets are toy. false: none",
    )
    template: PromptTemplate = Field(
        default="grid",
        description="how a prompt is wrapped, the same for all models. grid: the grid's `template`; none: as it is",
    )
    parallel_template: PromptTemplate | None = Field(
        default=None, description="how a parallel sentence is wrapped. None: as it is, a toy one by the grid's `template`"
    )

    @model_validator(mode="after")
    def _sources_are_there(self) -> "ActivationPart":
        for name in ("prompts", "parallel"):
            source = getattr(self, name)
            if isinstance(source, DatasetSource) and source.missing is not None:
                raise ValueError(f"`{name}` cannot be `missing`: give hub, files or toy")
        return self

    @property
    def settings(self) -> ActivationSettings:
        """What an `activations` stage obeys."""
        return ActivationSettings(**{name: getattr(self, name) for name in ActivationSettings.model_fields})


class ReplayQualityPart(Settings):
    """What generated replay is like."""

    max_length: int = Field(default=2048, gt=0, description="tokens of prompt and answer; longer rows have no perplexity")
    seed: int = Field(default=0, description="of the pairs that self-BLEU is taken over")


class Insight(Settings):
    """What is measured of data sets and models beside the scores; a part's ``false`` leaves it out."""

    embedding: Annotated[EmbeddingPart | None, _part] = Field(
        default=EmbeddingPart(), description="DES of every pair of the grid's data sets, and of generated replay"
    )
    drift: Annotated[
        tuple[Literal["phases", "datasets"], ...],
        BeforeValidator(lambda value: () if value is False else value, json_schema_input_type=list[str] | Literal[False]),
    ] = Field(
        default=("phases", "datasets"),
        description="weight differences (MPD). phases: base, Phase 1 and Phase 2 models of a cell; datasets: the study's, between "
        "the base tuned on D1 and the base tuned on D2, which trains the base on each Phase 2 data set too",
    )
    activations: Annotated[ActivationPart | None, _part] = Field(
        default=ActivationPart(), description="hidden states, and the change of their covariance from Phase 1 to Phase 2"
    )
    divergence: Annotated[DivergenceSettings | None, _part] = Field(
        default=DivergenceSettings(), description="KL(P1‖P2) on the Phase 2 data set and on its English counterpart"
    )
    replay_quality: Annotated[ReplayQualityPart | None, _part] = Field(
        default=ReplayQualityPart(), description="what generated replay is like"
    )


def is_toy(datasets: Mapping[str, DatasetSource]) -> bool:
    """Whether a grid's data sets are all toy, so that nothing may be downloaded for it."""
    return all(source.toy is not None for source in datasets.values())


def default_embedder(datasets: Mapping[str, DatasetSource]) -> Literal["lexical"] | Embedder:
    """The embedding model of a grid that names none."""
    return "lexical" if is_toy(datasets) else Embedder(hub=LABSE)


def default_prompts(datasets: Mapping[str, DatasetSource]) -> DatasetSource:
    """The prompts of a grid that names none: MT-Bench's 80 first turns, or the toy world's."""
    if is_toy(datasets):
        return DatasetSource(toy="prompts", languages=("en",))
    columns = {"instruction": "prompt[0]", "id": "prompt_id"}
    return DatasetSource(hub="HuggingFaceH4/mt_bench_prompts", columns=columns, languages=("en",))


def default_parallel(datasets: Mapping[str, DatasetSource]) -> DatasetSource | None:
    """Parallel sentences in English and the grid's languages; None where those are not two.

    FLORES+ is gated on the hub: its terms are to be accepted there, and ``HF_TOKEN`` set.
    """
    used = dict.fromkeys(("en", *(language for source in datasets.values() for language in source.languages)))
    if is_toy(datasets):
        return DatasetSource(toy="parallel", languages=_some(used, TOY["parallel"].languages))
    languages = _some(used, FLORES)
    if len(languages) < 2:
        return None
    columns = {"instruction": "text", "id": "id"}
    hub = "openlanguagedata/flores_plus"
    return DatasetSource(hub=hub, config="{flores}", split="devtest", columns=columns, languages=languages)


def _some(languages: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    return tuple(language for language in languages if language in set(known))
