"""Stages of the grid's section `insight`: similarity of data sets, and what changes inside the models.

Every measure is a stage over what the cells have anyway, so cells share them as they share models; only the study's MPD
between data sets trains more: the base on each Phase 2 data set. A cell's roles are what is about the cell itself, and the
pairs of data sets in which one of its own takes part:

| role | what |
| --- | --- |
| ``insight:des`` | DES of the data sets of Phase 1 and Phase 2 |
| ``insight:des:A,B`` | of another pair of the grid's data sets, one of them the cell's |
| ``insight:des:replay-phase1``, ``insight:des:replay-english`` | of generated replay and the data it stands for |
| ``insight:drift:base-phase1``, ``…:phase1-phase2``, ``…:base-phase2`` | weight differences along the road |
| ``insight:drift:datasets``, ``…:datasets:A,B`` | between the base tuned on one data set and on another |
| ``insight:activations:ROLE``, ``insight:parallel:ROLE`` | hidden states of `base`, `phase1`, `phase2` |
| ``insight:covariance:phase1-phase2`` | change of their covariance over the prompts |
| ``insight:kl:phase2``, ``insight:kl:english`` | KL(P1‖P2) on the Phase 2 data set and on its counterpart |
| ``insight:replay_quality`` | what generated replay is like |

Pairs stand in the grid's order whatever cell asks, so that each is one stage. In a drift `left` is the later model.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from cft_ray.grid.cells import Cell
from cft_ray.grid.insight import ActivationPart, default_embedder, default_parallel, default_prompts
from cft_ray.grid.schema import Grid
from cft_ray.grid.sections import DatasetSource
from cft_ray.grid.settings import EmbeddingSettings, Template
from cft_ray.plan.road import Model, Road
from cft_ray.plan.sources import Sources
from cft_ray.plan.specs import (
    ActivationsSpec,
    Checkpoint,
    CovarianceSpec,
    DatasetSpec,
    DivergenceSpec,
    DriftSpec,
    EmbedSpec,
    ReplayQualitySpec,
    SimilaritySpec,
    Spec,
)
from cft_ray.plan.stage import Stage

Add = Callable[[Spec, Mapping[str, str], str], Stage]
"""(spec, inputs, label) -> the plan's stage of that fingerprint"""
Roles = dict[str, str]


def phase1_data(grid: Grid, model: str, phase1: str) -> str | None:
    """The data set that a Phase 1 was trained on; None for a published or local checkpoint: nobody says."""
    if phase1 in grid.datasets:
        return phase1
    training = grid.models[model][phase1].train
    return training.data if training is not None else None


def notes(grid: Grid, cells: Sequence[Cell]) -> list[str]:
    """What the section cannot measure in this grid, a line each."""
    if grid.insight is None or grid.insight.embedding is None:
        return []
    roads = dict.fromkeys((cell.variant.model, cell.variant.pair.phase1) for cell in cells)
    return [
        f"insight: no DES of {model} {phase1}: the data set of a checkpoint that was not trained here is not known"
        for model, phase1 in roads
        if phase1_data(grid, model, phase1) is None
    ]


class InsightPlanner:
    """Plans the section's stages for one cell after the other.

    Args:
        grid: with a section `insight`.
        cells: all of the grid's; which data sets there are to compare is seen from them.
        sources: of the grid.
        add: enters a stage.
        dataset: enters a data set of the grid by its name.
    """

    def __init__(self, grid: Grid, cells: Sequence[Cell], sources: Sources, add: Add, dataset: Callable[[str], Stage]) -> None:
        assert grid.insight is not None
        self.grid, self.section, self.sources, self.add, self.dataset = grid, grid.insight, sources, add, dataset
        read: dict[str, None] = {}
        self.tuned: dict[str, list[str]] = {}
        """model -> what its base is tuned on: Phase 1s, then Phase 2 data sets"""
        firsts = [(cell.variant.model, cell.variant.pair.phase1) for cell in cells]
        seconds = [(cell.variant.model, cell.variant.pair.phase2) for cell in cells]
        for model, name in dict.fromkeys(firsts + seconds):
            self.tuned.setdefault(model, []).append(name)
            read |= dict.fromkeys(found for found in (phase1_data(grid, model, name), self._english(name)) if found)
        self.names = [name for name in grid.datasets if name in read]
        self.toy = all(grid.datasets[name].toy is not None for name in self.names)
        self._specs: dict[tuple[object, ...], Spec] = {}
        self._pairs: dict[tuple[str | None, ...], Roles] = {}
        self._sets: dict[str, tuple[Stage, Template | None] | None] = {}

    def roles(self, road: Road) -> Roles:
        """Role -> fingerprint of every stage that looks at a cell."""
        section = self.section
        found: Roles = {}
        if section.embedding is not None:
            found |= self._similarities(road)
        if "phases" in section.drift:
            for later, earlier in (("phase1", "base"), ("phase2", "phase1"), ("phase2", "base")):
                stage = self._drift(getattr(road, later), getattr(road, earlier))
                found[f"insight:drift:{earlier}-{later}"] = stage.fingerprint
        if "datasets" in section.drift:
            found |= self._tuned_drifts(road)
        if section.activations is not None:
            found |= self._activations(road, section.activations)
        if section.divergence is not None:
            found |= self._divergences(road)
        return found | self._replay(road)

    def _english(self, name: str) -> str | None:
        source = self.grid.datasets.get(name)
        return source.english if source is not None else None

    # Similarity of data sets

    def _similarities(self, road: Road) -> Roles:
        pair = road.variant.pair
        first = phase1_data(self.grid, road.variant.model, pair.phase1)
        mine = (first, pair.phase2, self._english(pair.phase2))
        if mine not in self._pairs:
            roles: Roles = {}
            for left, right in combinations(self.names, 2):
                if left in mine or right in mine:
                    role = "insight:des" if {left, right} == {first, pair.phase2} else f"insight:des:{left},{right}"
                    roles[role] = self._similarity(self.dataset(left), self.dataset(right)).fingerprint
            if (
                first is not None and first == pair.phase2
            ):  # a second phase on the same data: 1 by definition, and said all the same
                roles["insight:des"] = self._similarity(self.dataset(first), self.dataset(first)).fingerprint
            self._pairs[mine] = roles
        return self._pairs[mine]

    def _similarity(self, left: Stage, right: Stage, *, replay: bool = False) -> Stage:
        part = self.section.embedding
        assert part is not None
        settings = part.settings.model_copy(update={"text": part.replay_text}) if replay else part.settings
        spec = self._spec(SimilaritySpec, resamples=part.resamples, seed=part.seed)
        inputs = {"left": self._embedded(left, settings), "right": self._embedded(right, settings)}
        return self.add(spec, inputs, f"{left.label} ~ {right.label} DES")

    def _embedded(self, data: Stage, settings: EmbeddingSettings) -> str:
        key = ("embed", settings)
        if key not in self._specs:
            part = self.section.embedding
            assert part is not None
            model = part.model or default_embedder(self.toy)
            checkpoints = {} if model.lexical else {"embedder": self.sources.embedder(model)}
            self._specs[key] = EmbedSpec(checkpoints=checkpoints, settings=settings)
        return self.add(self._specs[key], {"data": data.fingerprint}, f"{data.label} embeddings").fingerprint

    # Weights

    def _drift(self, later: Model, earlier: Model) -> Stage:
        inputs: dict[str, str] = {}
        checkpoints: dict[str, Checkpoint] = {}
        later.source.attach("left", inputs, checkpoints)
        earlier.source.attach("right", inputs, checkpoints)
        return self.add(self._spec(DriftSpec, checkpoints=checkpoints), inputs, f"{later.label} drift from {earlier.label}")

    def _tuned_drifts(self, road: Road) -> Roles:
        pair = road.variant.pair
        own = {pair.phase1, pair.phase2}
        roles: Roles = {}
        for first, second in combinations(self.tuned[road.variant.model], 2):
            if first in own or second in own:
                role = "insight:drift:datasets" + ("" if {first, second} == own else f":{first},{second}")
                roles[role] = self._drift(road.tuned(second), road.tuned(first)).fingerprint
        return roles

    # Hidden states and predictions

    def _activations(self, road: Road, part: ActivationPart) -> Roles:
        roles: Roles = {}
        for purpose, what in (("activations", "prompts"), ("parallel", "parallel")):
            texts = self._texts(part, what)
            if texts is None:
                continue
            for role in ("base", "phase1", "phase2"):
                model: Model = getattr(road, role)
                inputs = {"prompts": texts[0].fingerprint}
                checkpoints: dict[str, Checkpoint] = {}
                model.source.attach("model", inputs, checkpoints)
                spec = self._spec(ActivationsSpec, checkpoints=checkpoints, template=texts[1], settings=part.settings)
                stage = self.add(spec, inputs, f"{model.label} {purpose}")
                roles[f"insight:{purpose}:{role}"] = stage.fingerprint
        sides = {"left": roles["insight:activations:phase1"], "right": roles["insight:activations:phase2"]}
        stage = self.add(self._spec(CovarianceSpec), sides, f"{road.phase2.label} covariance")
        return roles | {"insight:covariance:phase1-phase2": stage.fingerprint}

    def _texts(self, part: ActivationPart, what: str) -> tuple[Stage, Template | None] | None:
        """The data set of prompts or of parallel sentences, and how its rows are wrapped; None: not to be had."""
        if what not in self._sets:
            name: str | bool | None = getattr(part, what)
            if name:
                self._sets[what] = self._wrapped(self.dataset(str(name)), part, what)
            elif name is False or (source := self._default(what)) is None:
                self._sets[what] = None
            else:
                spec = self.sources.source(source, ("insight", "activations", what))
                stage = self.add(spec, {}, (source.hub or source.toy or what).rpartition("/")[2])
                self._sets[what] = self._wrapped(stage, part, what)
        return self._sets[what]

    def _default(self, what: str) -> DatasetSource | None:
        if what == "prompts":
            return default_prompts(self.toy)
        return default_parallel(self.toy, [language for name in self.names for language in self.grid.datasets[name].languages])

    def _wrapped(self, stage: Stage, part: ActivationPart, what: str) -> tuple[Stage, Template | None]:
        choice = part.template if what == "prompts" else part.parallel_template
        if choice is None:
            assert isinstance(stage.spec, DatasetSpec)
            choice = "grid" if stage.spec.toy is not None else "none"
        return stage, choice if isinstance(choice, Template) else self.grid.template if choice == "grid" else None

    def _divergences(self, road: Road) -> Roles:
        english = self._english(road.variant.pair.phase2)
        rows = {"phase2": (road.data, road.phase2.taught)}
        if english is not None:
            rows["english"] = (self.dataset(english), road.phase1.taught)
        roles: Roles = {}
        for name, (data, template) in rows.items():
            inputs = {"data": data.fingerprint}
            checkpoints: dict[str, Checkpoint] = {}
            road.phase1.source.attach("left", inputs, checkpoints)
            road.phase2.source.attach("right", inputs, checkpoints)
            wording = template or self.grid.template
            spec = self._spec(DivergenceSpec, checkpoints=checkpoints, template=wording, settings=self.section.divergence)
            stage = self.add(spec, inputs, f"{road.phase2.label} KL on {data.label}")
            roles[f"insight:kl:{name}"] = stage.fingerprint
        return roles

    # Replay

    def _replay(self, road: Road) -> Roles:
        english = self._english(road.variant.pair.phase2)
        if road.replay is None or english is None:
            return {}
        roles: Roles = {}
        part = self.section.replay_quality
        if part is not None:
            inputs = {"replay": road.replay.fingerprint, "english": self.dataset(english).fingerprint}
            checkpoints: dict[str, Checkpoint] = {}
            road.phase1.source.attach("model", inputs, checkpoints)
            spec = self._spec(
                ReplayQualitySpec,
                checkpoints=checkpoints,
                template=road.phase1.taught or self.grid.template,
                max_length=part.max_length,
                seed=part.seed,
            )
            roles["insight:replay_quality"] = self.add(spec, inputs, f"{road.replay.label} quality").fingerprint
        if self.section.embedding is not None:
            first = phase1_data(self.grid, road.variant.model, road.variant.pair.phase1)
            for name, data in (("phase1", first), ("english", english)):
                if data is not None:
                    stage = self._similarity(road.replay, self.dataset(data), replay=True)
                    roles[f"insight:des:replay-{name}"] = stage.fingerprint
        return roles

    def _spec(self, kind: type[Spec], *, checkpoints: Mapping[str, Checkpoint] | None = None, **values: object) -> Spec:
        """One object for all stages that have the same spec: its canonical text is made once."""
        named = tuple((role, id(checkpoint)) for role, checkpoint in (checkpoints or {}).items())
        key = (kind, named, *values.values())
        if key not in self._specs:
            given = values if checkpoints is None else {"checkpoints": checkpoints, **values}
            self._specs[key] = kind(**given)
        return self._specs[key]
