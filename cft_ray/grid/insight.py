"""The grid's section `insight`: what is measured of data sets and models beside the scores.

A part that is not written has its defaults, and ``false`` leaves it out: ``insight: {}`` measures everything. Defaults
that depend on the grid (which embedding model, which prompts) are settled here too: a grid whose data are all toy gets
what needs no download, any other what the study used (arXiv 2410.16006).
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cft_ray.data.languages import FLORES
from cft_ray.data.toy import TOY
from cft_ray.grid.sections import DatasetSource
from cft_ray.grid.settings import ActivationSettings, DivergenceSettings, EmbeddingSettings, Settings, Template
from cft_ray.grid.words import MOST, PlaceName, Repository, Revision, Seed, wrong

LABSE = "sentence-transformers/LaBSE"
"""the study's embedding model"""


def _switch(value: Any) -> Any:
    return {} if value is True else None if value is False else value


_part = BeforeValidator(_switch, json_schema_input_type=bool | dict[str, Any])


class Embedder(Settings):
    """What turns texts into vectors: a published or local sentence-transformers model, or character n-grams."""

    hub: Repository | None = Field(default=None, description="Hugging Face model id")
    revision: Revision | None = Field(default=None, description="commit, tag or branch of `hub`; a commit cannot move")
    path: PlaceName | None = Field(default=None, description="folder or URI of a sentence-transformers model")
    lexical: bool = Field(default=False, description="character n-grams: no download, and words are seen, not meaning")

    @model_validator(mode="after")
    def _one_origin(self) -> "Embedder":
        origins = [name for name in ("hub", "path", "lexical") if getattr(self, name)]
        if len(origins) != 1:
            raise wrong(f"{' and '.join(origins) or 'no model'} given", "give exactly one of hub, path, lexical")
        if self.revision is not None and self.hub is None:
            raise wrong("a revision of no repository", "`revision` goes with `hub`")
        return self


def _named_embedder(value: Any) -> Any:
    return ({"lexical": True} if value == "lexical" else {"hub": value}) if isinstance(value, str) else value


def _named_template(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) and value not in ("grid", "none") else value


EmbedderChoice = Annotated[Embedder, BeforeValidator(_named_embedder, json_schema_input_type=str | Embedder)]
PromptTemplate = Annotated[
    Literal["grid", "none"] | Template, BeforeValidator(_named_template, json_schema_input_type=str | Template)
]


class EmbeddingPart(EmbeddingSettings):
    """Embedding similarity (DES) of data sets."""

    model: EmbedderChoice | None = Field(
        default=None,
        description=f"a hub id, `lexical`, or a mapping. None: {LABSE}; lexical where the cells' data are toy",
    )
    replay_text: Literal["instruction", "instruction_and_answer", "answer"] = Field(
        default="answer", description="what is embedded where generated replay is compared; its instructions are not its own"
    )
    resamples: int = Field(default=1000, gt=0, le=MOST, description="bootstrap resamples of each side's rows")

    @property
    def settings(self) -> EmbeddingSettings:
        """What an `embed` stage obeys."""
        return EmbeddingSettings(**{name: getattr(self, name) for name in EmbeddingSettings.model_fields})


class ActivationPart(ActivationSettings):
    """Hidden states of the models over prompts, and over parallel sentences."""

    prompts: str | None = Field(
        default=None,
        description="a name among `datasets`. None: MT-Bench's first turns; the toy world's where the cells' data are toy",
    )
    parallel: str | Literal[False] | None = Field(
        default=None,
        description="a name among `datasets`: sentences that say the same in several languages, their ids alike up to "
        "`:{language}`. None: FLORES+; the toy world's where the cells' data are toy. false: none",
    )
    template: PromptTemplate = Field(
        default="grid",
        description="how a prompt is wrapped, the same for all models. grid: the grid's `template`; none: as it is",
    )
    parallel_template: PromptTemplate | None = Field(
        default=None, description="how a parallel sentence is wrapped. None: as it is, a toy one by the grid's `template`"
    )

    @property
    def settings(self) -> ActivationSettings:
        """What an `activations` stage obeys."""
        return ActivationSettings(**{name: getattr(self, name) for name in ActivationSettings.model_fields})


class ReplayQualityPart(Settings):
    """What generated replay is like."""

    max_length: int = Field(
        default=2048, gt=0, le=MOST, description="tokens of prompt and answer; longer rows have no perplexity"
    )
    seed: Seed = Field(default=0, description="of the pairs that self-BLEU is taken over")


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
        description="weight differences (MPD). phases: base, Phase 1 and Phase 2 models of a cell; datasets: the study's, "
        "between the base tuned on D1 and the base tuned on D2, which trains the base on each Phase 2 data set too",
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


def default_embedder(toy: bool) -> Embedder:
    """The embedding model of a grid that names none; ``toy``: the data that its cells read are."""
    return Embedder(lexical=True) if toy else Embedder(hub=LABSE)


def default_prompts(toy: bool) -> DatasetSource:
    """The prompts of a grid that names none: MT-Bench's 80 first turns, or the toy world's."""
    if toy:
        return DatasetSource(toy="prompts", languages=("en",))
    columns = {"instruction": "prompt[0]", "id": "prompt_id"}
    return DatasetSource(hub="HuggingFaceH4/mt_bench_prompts", columns=columns, languages=("en",))


def default_parallel(toy: bool, languages: Iterable[str]) -> DatasetSource | None:
    """Parallel sentences in English and a grid's languages; None where those are not two.

    FLORES+ is gated on the hub: its terms are to be accepted there, and ``HF_TOKEN`` set.
    """
    known = TOY["parallel"].languages if toy else FLORES
    wanted = tuple(language for language in dict.fromkeys(("en", *languages)) if language in known)
    if len(wanted) < 2:
        return None
    if toy:
        return DatasetSource(toy="parallel", languages=wanted)
    columns = {"instruction": "text", "id": "id"}
    hub = "openlanguagedata/flores_plus"
    return DatasetSource(hub=hub, config="{flores}", split="devtest", columns=columns, languages=wanted)
