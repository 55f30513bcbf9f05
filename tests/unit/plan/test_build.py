"""Cells to stages: what is unique, what is shared, in which order, with which seeds, templates and strategies."""

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.schema import grid_from_text, load_grid
from cft_ray.plan.build import build, require_resolved, unresolved
from cft_ray.plan.specs import DatasetSpec, EvaluateSpec, FinetuneSpec, ReplaySpec

GRID = """\
name: g
storage: runs/g
models:
  a:
    base: {scratch: {layers: 12}, train: {data: mix, training: {steps: 5}}}
    instruct: {hub: org/a-it, revision: abc, template: chat}
datasets:
  mix: {toy: mixture, languages: [en]}
  en: {hub: org/en, format: alpaca, languages: [en]}
  multi: {hub: org/multi, format: alpaca, languages: [de], english: en}
pairs: [{phase1: en, phase2: multi}, {phase1: instruct, phase2: multi}]
strategies: [none, LF_H1, LF_H2, GR_5, GR_10, ER_10, LoRA]
template: plain
training: {epochs: 1}
evaluation: {benchmarks: [toy_letters, ifeval]}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))


def planned(*sets, text=GRID):
    return build(grid_from_text(text, "g.yaml", sets))


def kinds(plan):
    return Counter(stage.kind for stage in plan.stages.values())


def cell(plan, strategy, phase1="en", seed=0):
    return next(c for c in plan.cells if (c.strategy, c.phase1, c.seed) == (strategy, phase1, seed))


def stage(plan, strategy, role="phase2", phase1="en", seed=0):
    return plan.stages[cell(plan, strategy, phase1, seed).roles[role]]


def any_spec(item) -> Any:
    return item.spec


def spec(plan, strategy, role="phase2", phase1="en", seed=0) -> Any:
    return any_spec(stage(plan, strategy, role, phase1, seed))


def test_full_grid_has_56_cells_over_the_stages_counted_by_hand(repository):
    plan = build(load_grid(repository / "grids/full.yaml"))
    assert len(plan.cells) == 2 * 4 * 7 == 56
    phase1_trainings = 2 * 2  # two models on Alpaca and on OpenOrca; Instruct is published
    phase1_models = 2 * 3  # … plus Instruct
    models = 2 + phase1_models + 56  # base, phase 1, phase 2
    assert kinds(plan) == {
        "dataset": 5,  # Alpaca, MultiAlpaca, OpenOrca, mOpenOrca, and the 50k of OpenOrca that are its counterpart
        "finetune": phase1_trainings + 56,
        "replay": 2 * 4,  # GR_5 and GR_10 share one for each model and pair
        "drift": phase1_models,  # LF_H2's pairs with the same phase 1 share one
        "evaluate": models * 7,
    }


def test_papers_grid_has_the_printed_cells(repository):
    plan = build(load_grid(repository / "grids/paper.yaml"))
    printed = {("none", 8), ("LF_H1", 2), ("LF_H2", 3), ("GR_5", 3), ("GR_10", 3), ("LoRA", 3), ("ER_10", 3)}
    assert set(Counter(c.strategy for c in plan.cells).items()) == printed
    assert not any((c.model, c.phase2, c.strategy) == ("mistral-7b", "mopenorca", "LF_H1") for c in plan.cells)
    assert kinds(plan)["finetune"] == 4 + 25


def test_what_cells_share():
    plan = planned()
    assert kinds(plan) == {"dataset": 4, "finetune": 1 + 1 + 14, "drift": 2, "replay": 2, "evaluate": 2 * (1 + 2 + 14)}
    assert len({c.roles["phase1"] for c in plan.cells if c.phase1 == "en"}) == 1
    assert stage(plan, "GR_5").inputs["replay"] == stage(plan, "GR_10").inputs["replay"]
    assert cell(plan, "GR_5").roles["phase2"] != cell(plan, "GR_10").roles["phase2"]
    assert stage(plan, "ER_10").inputs["english"] == stage(plan, "none", "phase1").inputs["data"]


@pytest.mark.parametrize("strategies", ["[none]", "[GR_5]", "[ER_10]", "[LF_H2]", "[none, GR_10, LoRA]"])
@pytest.mark.parametrize("phase1", ["en", "instruct"])
def test_inputs_come_first_and_exist(strategies, phase1):
    plan = planned("seeds=[0, 1]", f"strategies={strategies}", f"pairs=[{{phase1: {phase1}, phase2: multi}}]")
    done = set()
    for fingerprint, item in plan.stages.items():
        assert set(item.inputs.values()) <= done
        assert item.fingerprint == fingerprint
        done.add(fingerprint)


def test_every_stage_is_needed_by_a_cell():
    plan = planned("strategies=[none, LoRA]", "datasets.multi.english=mix")
    needed = set()
    waiting = [fingerprint for c in plan.cells for fingerprint in c.roles.values()]
    while waiting:
        fingerprint = waiting.pop()
        needed.add(fingerprint)
        waiting += plan.stages[fingerprint].inputs.values()
    assert needed == set(plan.stages)


def test_plain_strategy_is_plain_training():
    plan = planned()
    none = stage(plan, "none").spec
    assert isinstance(none, FinetuneSpec) and none.strategy is None
    renamed = planned("strategies=[{name: vanilla, use: none}]")
    assert cell(renamed, "vanilla").roles["phase2"] == cell(plan, "none").roles["phase2"]
    lora = stage(plan, "LoRA").spec
    assert isinstance(lora, FinetuneSpec) and lora.strategy is not None and lora.strategy.settings["rank"] == 64


def test_seeds_reach_what_is_drawn_and_nothing_that_is_given():
    plan = planned("seeds=[3, 4]")
    for role in ("phase1", "phase2"):
        assert [spec(plan, "none", role, seed=seed).seed for seed in (3, 4)] == [3, 4]
    assert cell(plan, "none", seed=3).roles["base"] == cell(plan, "none", seed=4).roles["base"]
    replays = [item.spec for item in plan.stages.values() if isinstance(item.spec, ReplaySpec)]
    assert sorted(replay.seed for replay in replays) == [3, 3, 4, 4]
    datasets = [item.spec for item in plan.stages.values() if isinstance(item.spec, DatasetSpec)]
    assert {dataset.seed for dataset in datasets} == {0} and len(datasets) == 4


def test_roles_name_models_that_are_trained_and_scores_of_all():
    plan = planned()
    scores = {f"{role}:TA:{name}" for role in ("base", "phase1", "phase2") for name in ("toy_letters", "ifeval")}
    assert set(cell(plan, "none").roles) == {"base", "phase1", "phase2"} | scores
    assert set(cell(plan, "none", "instruct").roles) == {"base", "phase2"} | scores
    instruct = stage(plan, "none", "phase1:TA:ifeval", "instruct").spec
    assert isinstance(instruct, EvaluateSpec) and instruct.checkpoints["model"].revision == "abc"
    assert not any(role.startswith("base:") for role in cell(planned("evaluation.evaluate_base=false"), "none").roles)


def test_toy_benchmark_reads_its_items_from_a_data_set():
    plan = planned()
    items = plan.stages[stage(plan, "none", "phase2:TA:toy_letters").inputs["data"]].spec
    assert isinstance(items, DatasetSpec) and items.toy == "eval_letters" and items.languages == ("en",)
    assert "data" not in stage(plan, "none", "phase2:TA:ifeval").inputs


def judged(*sets):
    plan = planned("evaluation.benchmarks=[alpaca_eval]", *sets)
    return plan, stage(plan, "none", "phase2:TA:alpaca_eval")


def test_without_a_judge_its_benchmark_is_planned_and_skipped():
    plan, evaluation = judged()
    assert evaluation.skip is not None and "evaluation.judge" in evaluation.skip and "alpaca_eval" in evaluation.skip
    assert {item.skip for item in plan.stages.values() if item.kind != "evaluate"} == {None}
    endpoint = "evaluation.judge={model: m, base_url: 'https://x/v1', key_env: KEY}"
    _, with_judge = judged(endpoint)
    assert with_judge.skip is None and with_judge.fingerprint != evaluation.fingerprint
    _, elsewhere = judged("evaluation.judge={model: m, base_url: 'https://y/v1', max_concurrency: 2}")
    assert elsewhere.fingerprint == with_judge.fingerprint
    for other in ("model: m2, base_url: 'http://x/v1'", "model: m, base_url: 'http://x/v1', parameters: {temperature: 1}"):
        assert judged(f"evaluation.judge={{{other}}}")[1].fingerprint != with_judge.fingerprint


def test_a_local_judge_is_a_checkpoint_or_a_stage_of_the_grid():
    _, evaluation = judged("evaluation.judge={hub: org/judge, revision: abc}")
    assert any_spec(evaluation).checkpoints["judge"].hub == "org/judge" and set(evaluation.inputs) == {"model"}
    _, evaluation = judged("evaluation.judge={of: a/instruct}")
    assert any_spec(evaluation).checkpoints["judge"].hub == "org/a-it"
    plan, evaluation = judged("evaluation.judge={of: a/base}")
    assert evaluation.inputs["judge"] == cell(plan, "none").roles["base"] and not any_spec(evaluation).checkpoints
    with pytest.raises(UserError, match="is trained in 2 ways"):
        judged("evaluation.judge={of: a/base}", "training.learning_rate=[1e-5, 1e-6]")
    with pytest.raises(UserError, match=r"a/instuct.*\n.*a/instruct"):
        judged("evaluation.judge={of: a/instuct}")


@pytest.mark.parametrize(
    "wrong",
    [
        "{}",
        "{model: m}",
        "{hub: x/y, base_url: 'http://x'}",
        "{hub: x/y, path: z}",
        "{model: m, base_url: 'ftp://x'}",
        "{model: m, base_url: 'http://me:secret@x/v1'}",
        "{model: m, base_url: 'http://x', key_env: sk-secret}",
        "{hub: x/y, key_env: K}",
        "{path: x, revision: y}",
    ],
)
def test_wrong_judges_are_refused_and_secrets_not_repeated(wrong):
    with pytest.raises(UserError) as raised:
        judged(f"evaluation.judge={wrong}")
    assert "evaluation.judge" in str(raised.value) and "secret" not in str(raised.value)


def test_templates_nearest_first():
    plan = planned()
    assert spec(plan, "none", phase1="instruct").template.name == "chat"
    assert spec(plan, "none").template.name == "plain"
    assert spec(plan, "none", "phase1:TA:ifeval", "instruct").template.name == "chat"
    of_data = planned("datasets.multi.template=alpaca")
    assert spec(of_data, "none", phase1="instruct").template.name == "alpaca"
    replay = of_data.stages[stage(of_data, "GR_10", phase1="instruct").inputs["replay"]].spec
    assert isinstance(replay, ReplaySpec) and replay.template.name == "chat"  # asked in its own words
    assert spec(planned("evaluation.template=task"), "none", "phase2:TA:ifeval").template is None


@pytest.mark.parametrize("grid", ["smoke", "toy"])
def test_toy_models_are_asked_in_the_words_they_were_taught(grid: str, repository):
    plan = build(load_grid(repository / "grids" / f"{grid}.yaml"))
    asked = [item for item in plan.stages.values() if isinstance(item.spec, EvaluateSpec)]
    assert asked
    for item in asked:
        taught = plan.stages[item.inputs["model"]].spec
        assert isinstance(item.spec, EvaluateSpec) and isinstance(taught, FinetuneSpec)
        assert item.spec.template == taught.template


def test_evaluation_settings_nearest_first():
    plan = planned(
        "evaluation={benchmarks: [ifeval, {name: short, use: ifeval, limit: 5, generation: {max_new_tokens: 9}}], "
        "limit: 50, generation: {dtype: float32}}"
    )
    whole, short = (stage(plan, "none", f"phase2:TA:{name}").spec for name in ("ifeval", "short"))
    assert isinstance(whole, EvaluateSpec) and isinstance(short, EvaluateSpec)
    assert (whole.limit, whole.generation.max_new_tokens, whole.generation.dtype) == (50, 1280, "float32")
    assert (short.limit, short.generation.max_new_tokens, short.generation.dtype) == (5, 9, "float32")
    assert short.tasks == whole.tasks and short.benchmark == "short"
    own = "{name: mine, ability: LA, tasks: {de: my_task}, metric: acc}"
    assert spec(planned(f"evaluation.benchmarks=[{own}]"), "none", "phase2:LA:mine").tasks == {"de": "my_task"}


def test_swept_replay_settings_double_only_what_replays():
    plan = planned("replay.temperature=[0.5, 1.0]", "strategies=[none, GR_10]", "pairs=[{phase1: en, phase2: multi}]")
    assert [(c.strategy, dict(c.settings)) for c in plan.cells] == [
        ("none", {}),
        ("GR_10", {"replay.temperature": 0.5}),
        ("GR_10", {"replay.temperature": 1.0}),
    ]


def test_resources_reach_stages_and_change_no_fingerprint():
    plan, other = planned(), planned("resources={finetune: {workers: 4, gpus: 1}, replay: {gpus: 2}}", "max_parallel=3", "name=h")
    assert set(plan.stages) == set(other.stages)
    asked = stage(other, "none").resources
    assert (asked.workers * asked.cpus, asked.workers * asked.gpus) == (4, 4)
    assert other.stages[stage(other, "GR_10").inputs["replay"]].resources.gpus == 2


def test_a_checkpoints_training_may_have_resources_of_its_own():
    plain, two = planned(), planned("models.a.base.train.resources={workers: 2, cpus: 3}")
    assert plain.stages.keys() == two.stages.keys()
    workers = {
        (each.label, each.resources.workers, each.resources.cpus) for each in two.stages.values() if each.kind == "finetune"
    }
    assert {each for each in workers if each[1:] != (1, 1)} == {("a base", 2, 3)}
    with pytest.raises(UserError, match="split evenly over 3 workers"):
        planned("models.a.base.train.resources={workers: 3}")
    with pytest.raises(UserError, match="a base asks for 4 devices"):
        planned("models.a.base.train.resources={workers: 4, gpus: 1}", "cluster.max_devices=2")


def test_data_set_that_is_to_be_supplied_plans_but_does_not_run(repository, tmp_path):
    path = repository / "grids/full.yaml"
    grid = load_grid(path)
    plan = build(grid)
    assert [item.label for item in unresolved(plan)] == ["mopenorca"]
    with pytest.raises(UserError) as raised:
        require_resolved(plan, grid)
    assert raised.value.where is not None and "datasets.mopenorca" in raised.value.where
    assert raised.value.fix is not None and "--set datasets.mopenorca.files=" in raised.value.fix
    for language in grid.datasets["mopenorca"].languages:
        (tmp_path / f"{language}.jsonl").write_text("{}\n")
    grid = load_grid(path, [f"datasets.mopenorca.files={tmp_path}/{{language}}.jsonl"])
    require_resolved(build(grid), grid)
    without = load_grid(path, ["exclude=[{phase2: mopenorca}]"])
    require_resolved(build(without), without)


def test_own_strategy_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_strategies.py").write_text(
        "from cft_ray.strategies.base import Strategy\nclass Mine(Strategy):\n    strength: float = 0.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan = planned("strategies=[{name: mine, use: 'my_strategies:Mine', strength: [0.1, 0.2]}]")
    refs = [any_spec(plan.stages[c.roles["phase2"]]).strategy for c in plan.cells if c.phase1 == "en"]
    assert [(ref.use, ref.settings) for ref in refs] == [
        ("my_strategies:Mine", {"strength": 0.1}),
        ("my_strategies:Mine", {"strength": 0.2}),
    ]


def test_planning_loads_neither_ray_nor_torch(repository):
    heavy = "{'ray', 'torch', 'pyarrow', 'polars', 'transformers', 'vllm', 'deepspeed'}"
    code = (
        "import sys; from cft_ray.grid.schema import load_grid; from cft_ray.plan.build import build; "
        "from cft_ray.plan.show import as_json; grid = load_grid('grids/full.yaml', ['storage=runs/none-there']); "
        f"as_json(build(grid), grid); print(sorted({heavy} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert run.stdout == "[]\n"
    assert not (repository / "runs/none-there").exists()


def test_the_toy_grids_models_differ_in_more_than_their_architectures_name(repository):
    """A Mistral within its window and a Llama of the same sizes and seed are one function: the second would show nothing."""
    grid = load_grid(repository / "grids" / "toy.yaml")
    bases = [model["base"].scratch for model in grid.models.values()]
    assert len({base.model_dump_json(exclude={"architecture"}) for base in bases if base is not None}) == len(bases) == 2


def test_generative_replay_alone_brings_the_stages_that_it_reads():
    """Nobody else uses the English counterpart: Phase 1 is a checkpoint, and no other strategy replays."""
    plan = planned("strategies=[GR_5]", "pairs=[{phase1: instruct, phase2: multi}]")
    replay = next(item for item in plan.stages.values() if item.kind == "replay")
    prompts = plan.stages[replay.inputs["prompts"]]
    assert prompts.kind == "dataset" and spec_of_dataset(prompts).hub == "org/en"
    assert {fingerprint for item in plan.stages.values() for fingerprint in item.inputs.values()} <= set(plan.stages)


def spec_of_dataset(item) -> DatasetSpec:
    assert isinstance(item.spec, DatasetSpec)
    return item.spec


def test_what_a_strategy_lacks_is_told_at_its_place(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text(
        "from cft_ray.errors import UserError\nfrom cft_ray.plan.specs import DriftSpec\nfrom cft_ray.plan.stage import Stage\n"
        "from cft_ray.strategies.base import Strategy\n"
        "class Lacks(Strategy):\n    def stages(self, phase2):\n"
        "        raise UserError('no moon', where='inside', fix='wait')\n"
        "class Foreign(Strategy):\n    def stages(self, phase2):\n"
        "        return {'tide': Stage(DriftSpec(), {'left': 'f' * 64})}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as raised:
        planned("strategies=[none, {name: mine, use: 'lacking:Lacks'}]")
    assert (raised.value.what, raised.value.fix) == ("no moon", "wait")
    assert str(raised.value.where).startswith("g.yaml: strategies[1]") and "a en→multi" in str(raised.value.where)
    with pytest.raises(UserError, match=r"'tide' reads 'left' from a stage that is not in the plan") as raised:
        planned("strategies=[{name: mine, use: 'lacking:Foreign'}]")
    assert str(raised.value.where).startswith("g.yaml: strategies[0]")


def test_labels_name_the_seed_where_there_are_several_and_what_is_swept():
    plan = planned("strategies=[none]", "training.phase2={weight_decay: [0.1, 0.2]}", "pairs=[{phase1: en, phase2: multi}]")
    labels = {item.label for item in plan.stages.values() if item.kind == "finetune"}
    swept = {f"a en→multi none training.phase2.weight_decay={value}" for value in (0.1, 0.2)}
    assert labels == {"a base", "a en"} | swept
    several = planned("strategies=[none, GR_5]", "seeds=[0, 7]", "pairs=[{phase1: en, phase2: multi}]")
    found = {item.label for item in several.stages.values() if item.kind == "finetune"}
    pairs = {f"a en→multi {name} seed {seed}" for name in ("none", "GR_5") for seed in (0, 7)}
    assert found == {"a base", "a en seed 0", "a en seed 7"} | pairs
    assert {item.label for item in several.stages.values() if item.kind == "replay"} == {
        f"a en→multi seed {seed} replay" for seed in (0, 7)
    }


def test_a_judge_of_a_model_without_cells_is_refused():
    with pytest.raises(UserError, match="is of b, which no cell has"):
        judged("evaluation.judge={of: b/base}", "models.b={base: {hub: org/b}}", "exclude=[{model: b}]")


def test_a_local_judge_is_known_by_its_content(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    setting = f"evaluation.judge={{path: {tmp_path}}}"
    first = any_spec(judged(setting)[1]).checkpoints["judge"]
    assert first.path == str(tmp_path) and first.digest
    (tmp_path / "weights").write_text("other")
    assert any_spec(judged(setting)[1]).checkpoints["judge"].digest != first.digest
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json holds a list") as raised:
        judged(setting)
    assert "evaluation.judge.path" in str(raised.value.where)


def test_what_a_data_set_may_lose_is_its_own_word_or_the_grids():
    plan = planned("strategies=[none]", "allow_left_out=0.2", "datasets.multi.allow_left_out=0.3")
    shares = {item.label: any_spec(item).allow_left_out for item in plan.stages.values() if item.kind in ("dataset", "finetune")}
    assert shares["en"] == shares["a en"] == shares["mix"] == 0.2 and shares["multi"] == shares["a en→multi none"] == 0.3
    assert any_spec(stage(plan, "none")).data == "multi"
