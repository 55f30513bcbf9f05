"""Cells to the graph of unique stages.

Every cell walks the same road: data sets, the model that it starts from, Phase 1 (a training, or a checkpoint that
the grid names), what its strategy asks for, Phase 2, scores. Stages are known by their fingerprints, so whatever two
cells have in common is one stage. The cell's seed goes to Phase 1, Phase 2 and replay; data sets and given checkpoints are
given, not drawn, and use seed 0.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from cft_ray.errors import UserError
from cft_ray.grid.cells import Cell, Variant, cell_name, cells
from cft_ray.grid.choices import chosen_benchmarks
from cft_ray.grid.schema import Grid
from cft_ray.grid.settings import ScratchModel, Template, TrainingSettings
from cft_ray.plan.context import check_answers
from cft_ray.plan.digest import Digests
from cft_ray.plan.estimate import Estimator
from cft_ray.plan.insight import InsightPlanner
from cft_ray.plan.items import items_source, located
from cft_ray.plan.limits import Fitting
from cft_ray.plan.road import Model, Road
from cft_ray.plan.sources import Sources, is_unresolved
from cft_ray.plan.specs import SPECS, Checkpoint, DatasetSpec, EvaluateSpec, FinetuneSpec, Spec, StrategyRef
from cft_ray.plan.stage import Plan, PlannedCell, Resources, Stage
from cft_ray.strategies import reference
from cft_ray.strategies.base import ModelSource, Phase2, Strategy


def build(grid: Grid, *, digests: Digests | None = None) -> Plan:
    """The plan of a grid: its unique stages, inputs first, and its cells.

    Args:
        grid: checked.
        digests: of local files; none: with the user's cache.

    Raises:
        UserError: a local file is missing; a strategy lacks something; a wrong setting.
    """
    digests = digests or Digests()
    plan = _Builder(grid, digests).build()
    digests.save()
    return plan


def unresolved(plan: Plan) -> list[Stage]:
    """The plan's data sets that are still to be supplied."""
    return [stage for stage in plan.stages.values() if is_unresolved(stage.spec)]


def require_resolved(plan: Plan, grid: Grid) -> None:
    """Refuse to run a plan with data sets that are still to be supplied.

    Raises:
        UserError: naming the first, and how to supply it.
    """
    for stage in unresolved(plan):
        name = stage.label
        raise UserError(
            f"data set {name} is still to be supplied: {grid.datasets[name].missing}",
            where=grid.source.where(("datasets", name, "missing")),
            fix=f"--set datasets.{name}.files=PATH, or exclude its cells: --set 'exclude=[{{phase2: {name}}}]'",
        )


class _Builder:
    def __init__(self, grid: Grid, digests: Digests) -> None:
        self.grid, self.sources = grid, Sources(grid, digests)
        self.fitting = Fitting(grid, self.sources.fetched)
        self.stages: dict[str, Stage] = {}
        self.estimator = Estimator(grid)
        given = grid.resources
        self.resources: dict[str, Resources] = {
            kind: Resources(**given[kind].model_dump()) if kind in given else Resources() for kind in SPECS
        }
        self.benchmarks = chosen_benchmarks(grid)
        self.several = len(grid.seeds) > 1
        self.datasets: dict[str, Stage] = {}
        self.toys: dict[int, Stage | None] = {}
        self.given: dict[tuple[Any, ...], Model] = {}
        self.tuned: dict[tuple[Any, ...], Model] = {}
        self.specs: dict[tuple[Any, ...], FinetuneSpec] = {}
        self.references: dict[Strategy, StrategyRef | None] = {}
        self.evaluations: dict[tuple[Any, ...], EvaluateSpec] = {}
        self.scores: dict[tuple[Model, str], dict[str, str]] = {}
        self.judge: ModelSource | None = None
        self.planned: dict[str, PlannedCell] = {}
        self.insight: InsightPlanner | None = None

    def build(self) -> Plan:
        check_answers(self.grid, self.sources.fetched)
        all_cells = cells(self.grid)
        if self.grid.insight is not None:
            self.insight = InsightPlanner(self.grid, all_cells, self.sources, self._add, self._dataset)
        for cell in all_cells:
            self._cell(cell)
        return Plan(self.grid.name, self.stages, tuple(self.planned.values()), tuple(self.fitting.notes))

    def _cell(self, cell: Cell) -> None:
        variant, seed = cell.variant, cell.seed
        base = self._given(variant, "base")
        phase1 = self._tuned(variant, seed, base, variant.pair.phase1)
        data = self._dataset(variant.pair.phase2)
        template = self._template(variant.pair.phase2, variant, variant.pair.phase1)
        label = _label(variant, seed if self.several else None)
        places = ((*variant.path, "training"), ("training", "phase2"), ("training",))
        training = variant.phase2
        self.fitting.training(training, phase1.limits, variant.model, places)
        mine = self._strategy_stages(variant, training, seed, base, phase1, data)
        settings = variant.settings
        if not any(stage.kind == "replay" for stage in mine.values()):  # then how replay is sampled is nothing to it
            settings = {path: value for path, value in settings.items() if not path.startswith("replay.")}
        name = cell_name(variant.name, seed, settings)
        if name in self.planned:
            return
        phase2 = self._phase2(variant, training, seed, phase1, data, template, mine, label)
        roles: dict[str, str] = {}
        for role, model in (("base", base), ("phase1", phase1), ("phase2", phase2)):
            if model.source.stage is not None:
                roles[role] = model.source.stage.fingerprint
            if role != "base" or self.grid.evaluation.evaluate_base:
                roles |= self._scored(role, model)
        if self.insight is not None:
            replay = next((stage for stage in mine.values() if stage.kind == "replay"), None)
            tuned = partial(self._tuned, variant, seed, base)
            roles |= self.insight.roles(Road(variant, base, phase1, phase2, data, replay, tuned))
        self.planned[name] = PlannedCell(
            cell=name,
            model=variant.model,
            phase1=variant.pair.phase1,
            phase2=variant.pair.phase2,
            strategy=variant.strategy,
            seed=seed,
            settings=settings,
            roles=roles,
        )

    def _add(
        self, spec: Spec, inputs: Mapping[str, str], label: str, resources: Resources | None = None, skip: str | None = None
    ) -> Stage:
        """Enter a stage, or return the one that is already there."""
        resources = resources or self.resources[spec.kind]
        cost = self.estimator.of(spec, inputs, resources).cost(spec.kind)
        stage = Stage(spec, inputs, label, resources, cost, skip)
        known = self.stages.get(stage.fingerprint)
        if known is not None:
            return known
        self.estimator.note(stage.fingerprint, spec, inputs, label)
        self.stages[stage.fingerprint] = stage
        return stage

    def _dataset(self, name: str) -> Stage:
        stage = self._known_dataset(name)
        return self.stages.get(stage.fingerprint) or self._add(stage.spec, {}, name)

    def _known_dataset(self, name: str) -> Stage:
        """The stage of a data set that not every plan needs: it enters the plan with the first stage that reads it."""
        if name not in self.datasets:
            self.datasets[name] = Stage(self.sources.dataset(name), {}, name, self.resources["dataset"])
        return self.datasets[name]

    def _given(self, variant: Variant, name: str) -> Model:
        """A checkpoint of the model: as the grid names it, or trained as the grid says, with seed 0."""
        source = self.grid.models[variant.model][name]
        trainings = tuple(id(training) for training in variant.given.values())
        key = (variant.model, name, trainings)
        if key in self.given:
            return self.given[key]
        label = f"{variant.model} {name}"
        if source.train is None:
            checkpoint = self.sources.checkpoint(variant.model, name)
            model = Model(ModelSource(checkpoint=checkpoint), source.template, label, self.fitting.limits(variant.model, name))
        else:
            start = self._given(variant, source.start) if source.start is not None else None
            dataset = self.grid.datasets[source.train.data]
            template = dataset.template or source.template or self.grid.template
            limits = start.limits if start is not None else self.fitting.limits(variant.model, name)
            places = (("models", variant.model, name, "train", "training"), ("training",))
            training = variant.given[name]
            self.fitting.training(training, limits, variant.model, places)
            resources = self._training_resources(variant.model, name, training.batch_size)
            data = self._dataset(source.train.data)
            stage = self._finetune(training, template, start, source.scratch, data, label, resources=resources)
            model = Model(ModelSource(stage=stage), template, label, limits)
        self.given[key] = model
        return model

    def _training_resources(self, model: str, name: str, batch: int) -> Resources | None:
        """What the grid gives the training of a checkpoint for itself."""
        train = self.grid.models[model][name].train
        if train is None or train.resources is None:
            return None
        given = train.resources
        if batch % given.workers:
            raise UserError(
                f"a batch of {batch} cannot be split evenly over {given.workers} workers",
                where=self.grid.source.where(("models", model, name, "train", "resources")),
                fix="a number of workers that divides it",
            )
        return Resources(**given.model_dump())

    def _tuned(self, variant: Variant, seed: int, base: Model, name: str) -> Model:
        """The base tuned on a data set, as in Phase 1; or the checkpoint of that name, which is tuned already."""
        if name not in self.grid.datasets:
            return self._given(variant, name)
        key = (id(base), name, id(variant.tuning), seed)
        if key not in self.tuned:
            template = self._template(name, variant, "base")
            label = f"{variant.model} {name}" + (f" seed {seed}" if self.several else "")
            places = (("training", "phase1"), ("training",))
            self.fitting.training(variant.tuning, base.limits, variant.model, places)
            stage = self._finetune(variant.tuning, template, base, None, self._dataset(name), label, seed=seed)
            self.tuned[key] = Model(ModelSource(stage=stage), template, label, base.limits)
        return self.tuned[key]

    def _template(self, dataset: str, variant: Variant, start: str) -> Template:
        """How a data set's rows become text for a training that starts from a model: the nearest that says so.

        Args:
            dataset: its name.
            variant: of the cell.
            start: Phase 1 of the cell that the training continues, or ``base``.
        """
        own = self.grid.datasets[dataset].template
        if own is not None:
            return own
        checkpoints = self.grid.models[variant.model]
        named = checkpoints.get(start) or checkpoints["base"]
        return named.template or self.grid.template

    def _strategy_stages(
        self, variant: Variant, training: TrainingSettings, seed: int, base: Model, phase1: Model, data: Stage
    ) -> dict[str, Stage]:
        # Named without the strategy: other strategies may share them.
        label = f"{variant.model} {variant.pair.phase1}→{variant.pair.phase2}" + (f" seed {seed}" if self.several else "")
        counterpart = self.grid.datasets[variant.pair.phase2].english
        english = self._known_dataset(counterpart) if counterpart is not None else None
        phase2 = Phase2(
            base=base.source,
            phase1=phase1.source,
            data=data,
            english=english,
            template=phase1.taught or self.grid.template,
            sampling=variant.sampling,
            training=training,
            seed=seed,
            label=label,
            resources=self.resources,
            engine=self.grid.evaluation.engine,
        )
        try:
            stages = variant.implementation.stages(phase2)
        except UserError as error:
            where = f"{self.grid.source.where(variant.path)}: {label}"
            raise UserError(error.what, where=where, fix=error.fix) from None
        added: dict[str, Stage] = {}
        for role, stage in stages.items():
            for name, fingerprint in stage.inputs.items():
                if english is not None and fingerprint == english.fingerprint:
                    self._dataset(english.label)
                elif fingerprint not in self.stages:
                    raise UserError(
                        f"its stage {role!r} reads {name!r} from a stage that is not in the plan",
                        where=f"{self.grid.source.where(variant.path)}: {label}",
                        fix="build a strategy's stages from the models and data sets that it is given",
                    )
            added[role] = self._add(stage.spec, stage.inputs, stage.label, stage.resources)
        return added

    def _phase2(
        self,
        variant: Variant,
        training: TrainingSettings,
        seed: int,
        phase1: Model,
        data: Stage,
        template: Template,
        mine: Mapping[str, Stage],
        label: str,
    ) -> Model:
        strategy = variant.implementation
        if strategy not in self.references:
            # The plain strategy is plain training: it shares its stage with any other plain training of the same rows.
            self.references[strategy] = None if type(strategy) is Strategy else reference(strategy)
        stage = self._finetune(
            training, template, phase1, None, data, label, seed=seed, strategy=self.references[strategy], more=mine
        )
        return Model(ModelSource(stage=stage), template, label, phase1.limits)

    def _finetune(
        self,
        training: TrainingSettings,
        template: Template,
        start: Model | None,
        scratch: ScratchModel | None,
        data: Stage,
        label: str,
        *,
        seed: int = 0,
        strategy: StrategyRef | None = None,
        more: Mapping[str, Stage] | None = None,
        resources: Resources | None = None,
    ) -> Stage:
        inputs = {"data": data.fingerprint}
        checkpoints: dict[str, Checkpoint] = {}
        if start is not None:
            start.source.attach("model", inputs, checkpoints)
        for role, stage in (more or {}).items():
            inputs[role] = stage.fingerprint
        checkpoint = checkpoints.get("model")
        key = (id(training), template, id(checkpoint), scratch, id(strategy), seed, data.label)
        if key not in self.specs:
            self.specs[key] = FinetuneSpec(
                checkpoints=checkpoints,
                scratch=scratch,
                template=template,
                training=training,
                strategy=strategy,
                seed=seed,
                data=data.label,
                allow_left_out=data.spec.allow_left_out if isinstance(data.spec, DatasetSpec) else self.grid.allow_left_out,
            )
        return self._add(self.specs[key], inputs, label, resources)

    def _scored(self, role: str, model: Model) -> dict[str, str]:
        """Score role -> fingerprint of the evaluation of one model."""
        key = (model, role)
        if key not in self.scores:
            self.scores[key] = self._scores(role, model)
        return self.scores[key]

    def _scores(self, role: str, model: Model) -> dict[str, str]:
        scores: dict[str, str] = {}
        source = model.source
        for index, chosen in enumerate(self.benchmarks):
            data = self._items(index)
            spec = self._evaluation(index, model)
            inputs = {} if source.stage is None else {"model": source.stage.fingerprint}
            if data is not None:
                inputs["data"] = data.fingerprint
            skip = None
            if chosen.benchmark.judged:
                self._local_judge().attach("judge", inputs, {})
                skip = f"{chosen.name} has no judge (evaluation.judge)" if self.grid.evaluation.judge is None else None
            stage = self._add(spec, inputs, f"{model.label} {chosen.name}", skip=skip)
            scores[f"{role}:{spec.ability}:{chosen.name}"] = stage.fingerprint
        return scores

    def _evaluation(self, index: int, model: Model) -> EvaluateSpec:
        chosen = self.benchmarks[index]
        template = chosen.template
        if not isinstance(template, Template):
            template = model.taught if template == "model" else None
        checkpoint = model.source.checkpoint
        key = (index, template, id(checkpoint))
        if key not in self.evaluations:
            judge = self.grid.evaluation.judge if chosen.benchmark.judged else None
            nltk_data = self.grid.evaluation.nltk_data
            if nltk_data is None and self.sources.fetched is not None:
                nltk_data = self.sources.fetched.nltk_data
            checkpoints: dict[str, Checkpoint] = {}
            model.source.attach("model", {}, checkpoints)
            if judge is not None:
                self._local_judge().attach("judge", {}, checkpoints)
            self.evaluations[key] = EvaluateSpec(
                checkpoints=checkpoints,
                benchmark=chosen.name,
                ability=chosen.benchmark.ability,
                tasks=chosen.benchmark.tasks,
                metric=chosen.benchmark.metric,
                template=template,
                generation=chosen.generation,
                limit=chosen.limit,
                backend=self.grid.evaluation.backend,
                items=items_source(self.grid, self.sources.digests, chosen, self.sources.fetched),
                nltk_data=located(nltk_data, self.grid.evaluation.data_folder) if nltk_data is not None else None,
                engine=self.grid.evaluation.engine,
                judge=judge.settings if judge is not None else None,
            )
        return self.evaluations[key]

    def _local_judge(self) -> ModelSource:
        """The judge that stages read as a model; neither stage nor checkpoint where it is an endpoint's, or none."""
        if self.judge is None:
            judge = self.grid.evaluation.judge
            if judge is not None and judge.of is not None:
                model, _, name = judge.of.partition("/")
                self.judge = self._only(model, name).source
            else:
                self.judge = ModelSource(checkpoint=self.sources.judge())
        return self.judge

    def _only(self, model: str, name: str) -> Model:
        """A checkpoint that all cells of its model share.

        Raises:
            UserError: it is trained in several ways, or no cell has its model.
        """
        variants = {id(cell.variant): cell.variant for cell in cells(self.grid) if cell.variant.model == model}.values()
        found = {id(given): given for variant in variants for given in [self._given(variant, name)]}
        if len(found) != 1:
            many = f"is trained in {len(found)} ways" if found else f"is of {model}, which no cell has"
            raise UserError(
                f"the judge {model}/{name} {many}",
                where=self.grid.source.where(("evaluation", "judge", "of")),
                fix="name a checkpoint that does not depend on what is swept, of a model that is in the grid's cells",
            )
        return next(iter(found.values()))

    def _items(self, index: int) -> Stage | None:
        """The data set stage that holds a benchmark's items, where they come from the toy world."""
        if index not in self.toys:
            benchmark = self.benchmarks[index].benchmark
            toy = benchmark.data
            spec = DatasetSpec(toy=toy, columns={}, languages=tuple(benchmark.tasks)) if toy is not None else None
            self.toys[index] = self._add(spec, {}, toy or "") if spec is not None else None
        return self.toys[index]


def _label(variant: Variant, seed: int | None) -> str:
    label = f"{variant.model} {variant.pair.phase1}→{variant.pair.phase2} {variant.strategy}"
    label += "".join(f" {path}={value}" for path, value in variant.settings.items())
    return label if seed is None else f"{label} seed {seed}"
