"""The grid's section `insight` as stages: what is measured for which cell, what is shared, what is refused."""

from collections import Counter

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.schema import grid_from_text, load_grid
from cft_ray.plan.build import build
from cft_ray.plan.specs import ActivationsSpec, DatasetSpec, DivergenceSpec, DriftSpec, EmbedSpec, FinetuneSpec, SimilaritySpec
from cft_ray.plan.view import as_json

GRID = """\
name: g
storage: runs/g
models:
  a:
    base: {hub: org/a}
    instruct: {hub: org/a-it, template: chat}
    own: {start: base, train: {data: mine, training: {steps: 7}}}
datasets:
  mine: {hub: org/mine, format: alpaca, languages: [en]}
  en: {hub: org/en, format: alpaca, languages: [en]}
  multi: {hub: org/multi, format: alpaca, languages: [de, sw], english: en}
pairs: [{phase1: en, phase2: multi}, {phase1: instruct, phase2: multi}, {phase1: own, phase2: multi}]
strategies: [none, LF_H2, GR_5, GR_10]
template: plain
training: {epochs: 1, phase2: {learning_rate: 1.0e-5}}
evaluation: {benchmarks: [toy_letters]}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))


def planned(*sets, text=GRID):
    return build(grid_from_text(text, "g.yaml", sets, ["insight"]))


def cell(plan, strategy="none", phase1="en", seed=0):
    return next(c for c in plan.cells if (c.strategy, c.phase1, c.seed) == (strategy, phase1, seed))


def insight(plan, strategy="none", phase1="en", seed=0):
    """Role, without its beginning -> stage."""
    roles = cell(plan, strategy, phase1, seed).roles
    return {role[8:]: plan.stages[key] for role, key in roles.items() if role.startswith("insight:")}


def kinds(plan):
    return Counter(stage.kind for stage in plan.stages.values())


def test_roles_of_a_cell():
    plan = planned()
    phases = {f"drift:{pair}" for pair in ("base-phase1", "phase1-phase2", "base-phase2")}
    models = {f"{what}:{role}" for what in ("activations", "parallel") for role in ("base", "phase1", "phase2")}
    common = phases | models | {"drift:datasets", "covariance:phase1-phase2", "kl:phase2", "kl:english"}
    found = {phase1: set(insight(plan, "none", phase1)) for phase1 in ("en", "instruct", "own")}
    assert found["en"] == common | {
        "des",
        "des:mine,en",
        "des:mine,multi",
        "drift:datasets:en,instruct",
        "drift:datasets:en,own",
        "drift:datasets:instruct,multi",
        "drift:datasets:own,multi",
    }
    assert "des" not in found["instruct"]  # nobody knows what it was trained on
    assert {role for role in found["instruct"] if role.startswith("des")} == {"des:mine,en", "des:mine,multi", "des:en,multi"}
    assert "des" in found["own"] and "des:en,multi" in found["own"]
    replay = {"replay_quality", "des:replay-phase1", "des:replay-english"}
    assert set(insight(plan, "GR_5")) == found["en"] | replay
    assert set(insight(plan, "GR_5", "instruct")) == found["instruct"] | replay - {"des:replay-phase1"}


def test_a_published_checkpoints_data_are_unknown_and_that_is_said():
    grid = grid_from_text(GRID, "g.yaml", sections=["insight"])
    notes = [text for text in as_json(build(grid), grid, ())["warnings"] if "insight" in text]
    assert len(notes) == 1 and "a instruct" in notes[0]


def test_what_is_shared():
    plan = planned()
    # Pairs of mine, en, multi; replay of en ~ en (phase 1 and counterpart at once), of instruct ~ en, of own ~ mine and en.
    assert kinds(plan)["similarity"] == 3 + 1 + 1 + 2
    assert insight(plan)["des"].fingerprint == insight(plan, "LF_H2", "own")["des:en,multi"].fingerprint
    assert insight(plan, "GR_5")["replay_quality"].fingerprint == insight(plan, "GR_10")["replay_quality"].fingerprint
    # LF_H2 freezes by the same drift.
    roles = cell(plan, "LF_H2").roles
    assert roles["insight:drift:base-phase1"] == plan.stages[roles["phase2"]].inputs["drift"]
    models = 1 + 3 + 12
    assert kinds(plan)["activations"] == 2 * models and kinds(plan)["covariance"] == 12 and kinds(plan)["divergence"] == 24
    embedded = [stage for stage in plan.stages.values() if isinstance(stage.spec, EmbedSpec)]
    assert (
        len({(stage.inputs["data"], stage.spec.canonical) for stage in embedded}) == len(embedded) == 3 + (2 + 3)
    )  # instructions; answers of mine, en and replay


def test_every_stage_is_needed_by_a_cell_and_inputs_come_first():
    plan = planned()
    needed, waiting = set(), [key for c in plan.cells for key in c.roles.values()]
    while waiting:
        key = waiting.pop()
        if key not in needed:
            needed.add(key)
            waiting += plan.stages[key].inputs.values()
    assert needed == set(plan.stages)
    done = set()
    for key, stage in plan.stages.items():
        assert set(stage.inputs.values()) <= done
        done.add(key)


def test_drift_between_data_sets_tunes_the_base_on_each_as_in_phase_1():
    plan = planned()
    stage = insight(plan)["drift:datasets"]
    tuned = plan.stages[stage.inputs["left"]]
    assert isinstance(tuned.spec, FinetuneSpec) and tuned.spec.checkpoints["model"].hub == "org/a"
    assert tuned.spec.training.learning_rate == 1e-6 and tuned.label == "a multi"  # Phase 1's, not Phase 2's
    assert stage.inputs["right"] == cell(plan).roles["phase1"]
    trained = [item for item in plan.stages.values() if item.kind == "finetune"]
    assert len(trained) == 2 + 12 + 1  # en, own, a Phase 2 for each cell, and multi alone
    assert kinds(planned("insight.drift=[phases]"))["finetune"] == 2 + 12
    instruct = insight(plan, "none", "instruct")["drift:datasets"].spec
    assert isinstance(instruct, DriftSpec) and instruct.checkpoints["right"].hub == "org/a-it"


def test_drift_between_data_sets_takes_the_first_of_swept_settings():
    plan = planned("training.phase1={steps: [3, 4]}")
    named = [c for c in plan.cells if c.phase1 == "instruct" and c.strategy == "none"]
    assert len(named) == 1
    left = plan.stages[plan.stages[named[0].roles["insight:drift:datasets"]].inputs["left"]].spec
    assert isinstance(left, FinetuneSpec) and left.training.steps == 3
    mine = {c.settings["training.phase1.steps"]: c for c in plan.cells if c.phase1 == "en" and c.strategy == "none"}
    for steps, item in mine.items():
        left = plan.stages[plan.stages[item.roles["insight:drift:datasets"]].inputs["left"]].spec
        assert isinstance(left, FinetuneSpec) and left.training.steps == steps


def test_seeds_have_drifts_of_their_own_and_share_similarities():
    plan = planned("seeds=[1, 2]")
    one, two = (insight(plan, "GR_5", seed=seed) for seed in (1, 2))
    same = {role for role in one if one[role].fingerprint == two[role].fingerprint}
    assert same == {"des", "des:mine,en", "des:mine,multi", "drift:datasets:en,instruct"} - {"drift:datasets:en,instruct"} | {
        "activations:base",
        "parallel:base",
    }


def test_replay_is_compared_by_its_answers():
    plan = planned("insight.embedding={sample: 50, resamples: 20, seed: 3, model: org/embedder}")
    stages = insight(plan, "GR_5")
    texts = {}
    for role in ("des", "des:replay-english"):
        spec = stages[role].spec
        assert isinstance(spec, SimilaritySpec) and (spec.resamples, spec.seed) == (20, 3)
        for side in stages[role].inputs.values():
            embed = plan.stages[side].spec
            assert isinstance(embed, EmbedSpec) and embed.checkpoints["embedder"].hub == "org/embedder"
            assert (embed.settings.sample, embed.settings.seed) == (50, 3)
            texts.setdefault(role, set()).add(embed.settings.text)
    assert texts == {"des": {"instruction"}, "des:replay-english": {"answer"}}


def test_words_in_which_models_are_asked():
    plan = planned()
    for role, name in (("kl:phase2", "chat"), ("kl:english", "chat")):
        spec = insight(plan, "none", "instruct")[role].spec
        assert isinstance(spec, DivergenceSpec) and spec.template.name == name
    for phase1 in ("en", "instruct"):
        for role in ("base", "phase1", "phase2"):  # one text for all models: what differs is the weights' doing
            spec = insight(plan, "none", phase1)[f"activations:{role}"].spec
            assert isinstance(spec, ActivationsSpec) and spec.template is not None and spec.template.name == "plain"
            spec = insight(plan, "none", phase1)[f"parallel:{role}"].spec
            assert isinstance(spec, ActivationsSpec) and spec.template is None


def test_defaults_need_no_download_where_all_data_are_toy(repository):
    toy = build(load_grid(repository / "grids/smoke.yaml", sections=["insight"]))
    for plan, embedder, prompts, languages in (
        (toy, set(), {"prompts", "parallel"}, ("en", "de", "es", "sw")),
        (planned(), {"sentence-transformers/LaBSE"}, {"HuggingFaceH4/mt_bench_prompts", "openlanguagedata/flores_plus"}, None),
    ):
        embeds = [stage.spec for stage in plan.stages.values() if isinstance(stage.spec, EmbedSpec)]
        assert embeds and {c.hub for spec in embeds for c in spec.checkpoints.values()} == embedder
        keys = {s.inputs["prompts"] for s in plan.stages.values() if s.kind == "activations"}
        specs = [spec for key in keys if isinstance(spec := plan.stages[key].spec, DatasetSpec)]
        assert {spec.toy or spec.hub for spec in specs} == prompts
        assert {spec.languages for spec in specs} == {("en",), languages or ("en", "de", "sw")}


def test_full_grids_pairs_are_those_of_the_study(repository):
    plan = build(load_grid(repository / "grids/full.yaml", sections=["insight"]))
    roles = {role for c in plan.cells for role in c.roles if c.model == "mistral-7b"}
    # Table of MPD: MultiAlpaca against Alpaca, Instruct, OpenOrca and mOpenOrca. DES: also OpenOrca against MultiAlpaca.
    assert {
        "insight:drift:datasets",
        "insight:drift:datasets:instruct,multialpaca",
        "insight:drift:datasets:openorca,multialpaca",
        "insight:drift:datasets:multialpaca,mopenorca",
        "insight:des:multialpaca,openorca",
    } <= roles
    trainings = {stage.label for stage in plan.stages.values() if stage.kind == "finetune"}
    assert {"mistral-7b multialpaca", "mistral-7b mopenorca"} <= trainings and kinds(plan)["finetune"] == 4 + 56 + 4


def test_parts_can_be_left_out_and_the_section_too():
    plan = build(grid_from_text(GRID, "g.yaml"))
    assert not any(role.startswith("insight:") for c in plan.cells for role in c.roles)
    off = "insight={embedding: false, drift: false, activations: false, divergence: false, replay_quality: false}"
    nothing = build(grid_from_text(GRID, "g.yaml", [off]))
    assert nothing.stages == plan.stages
    assert build(grid_from_text(GRID, "g.yaml", ["insight=true"])).stages == planned().stages
    some = planned("insight={activations: {parallel: false}, embedding: false, drift: []}")
    assert {role.partition(":")[0] for role in insight(some, "GR_5")} == {"activations", "covariance", "kl", "replay_quality"}


@pytest.mark.parametrize(
    ("change", "where", "said"),
    {
        "unknown prompts": ("insight.activations.prompts=mni", "insight.activations.prompts", "mine"),
        "one language": ("insight.activations.parallel=en", "insight.activations.parallel", "one language"),
        "both hub and path": ("insight.embedding.model={hub: a, path: b}", "insight.embedding.model", "hub and path"),
        "no such folder": ("insight.embedding.model={path: /nowhere}", "insight.embedding.model.path", "nowhere"),
        "unknown part": ("insight.embeding={}", "insight.embeding", "embedding"),
        "unknown drift": ("insight.drift=[phase]", "insight.drift", "phases"),
        "training on prompts": (
            "datasets.en={files: /x.jsonl, columns: {instruction: q}, languages: [en]}",
            "pairs[0].phase1",
            "output",
        ),
    }.values(),
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(change, where, said):
    with pytest.raises(UserError) as raised:
        planned(change)
    assert where in str(raised.value) and said in str(raised.value)


def test_parallel_rows_are_not_drawn_language_by_language():
    sets = ["datasets.many={toy: parallel, languages: [en, de], rows: 5}", "insight.activations.parallel=many"]
    with pytest.raises(UserError, match="no longer parallel"):
        planned(*sets)


def test_a_local_embedder_is_known_by_its_content(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    first = insight(planned(f"insight.embedding.model={{path: {tmp_path}}}"))["des"]
    (tmp_path / "modules.json").write_text("[ ]")
    second = insight(planned(f"insight.embedding.model={{path: {tmp_path}}}"))["des"]
    assert first.fingerprint != second.fingerprint


def test_without_similarity_nothing_is_said_of_unknown_data():
    grid = grid_from_text(GRID, "g.yaml", ["insight.embedding=false"])
    assert not [text for text in as_json(build(grid), grid, ())["warnings"] if "insight" in text]
    assert not [text for text in as_json(build(grid_from_text(GRID)), grid_from_text(GRID), ())["warnings"] if "insight" in text]


def test_a_second_phase_on_the_same_data_is_compared_with_itself():
    plan = planned("pairs=[{phase1: en, phase2: en}]", "strategies=[none]", "insight.drift=[]")
    found = insight(plan)
    sides = {plan.stages[key].inputs["data"] for key in found["des"].inputs.values()}
    assert {plan.stages[key].label for key in sides} == {"en"} and {role for role in found if role.startswith("des")} == {"des"}


def test_prompts_and_parallel_sentences_of_the_grid():
    asked = "datasets.asked={hub: org/asked, format: alpaca, languages: [en]}"
    said = "datasets.said={hub: org/said, languages: [en, de], columns: {instruction: q}}"
    plan = planned(asked, said, "insight.activations={prompts: asked, parallel: said}")
    for role, label in (("activations:phase2", "asked"), ("parallel:phase2", "said")):
        stage = insight(plan)[role]
        assert plan.stages[stage.inputs["prompts"]].label == label
    read = {stage.label for stage in plan.stages.values() if stage.kind == "dataset"}
    assert read == {"mine", "en", "multi", "asked", "said", "eval_letters"}


@pytest.mark.parametrize(
    ("choice", "prompts", "parallel"),
    [
        ("", "plain", None),
        ("template: none", None, None),
        ("template: alpaca, parallel_template: toy", "alpaca", "toy"),
        ("parallel_template: grid", "plain", "plain"),
        ("parallel_template: none", "plain", None),
    ],
)
def test_how_prompts_are_wrapped(choice, prompts, parallel):
    found = insight(planned(f"insight.activations={{{choice}}}"))
    for role, name in (("activations:base", prompts), ("parallel:base", parallel)):
        spec = found[role].spec
        assert isinstance(spec, ActivationsSpec) and (spec.template.name if spec.template is not None else None) == name


def test_toy_parallel_sentences_are_asked_in_the_grids_words(repository):
    plan = build(load_grid(repository / "grids/smoke.yaml", sections=["insight"]))
    specs = [
        plan.stages[key].spec for key in (plan.cells[0].roles[f"insight:{what}:base"] for what in ("activations", "parallel"))
    ]
    assert [spec.template.name for spec in specs if isinstance(spec, ActivationsSpec) and spec.template] == ["toy", "toy"]


def test_both_sides_of_a_measure_are_the_models_and_data_it_names():
    plan = planned()
    roles, found = cell(plan).roles, insight(plan)
    sides = {
        "drift:base-phase1": {"left": roles["phase1"]},
        "drift:phase1-phase2": {"left": roles["phase2"], "right": roles["phase1"]},
        "drift:base-phase2": {"left": roles["phase2"]},
        "covariance:phase1-phase2": {f: roles[f"insight:activations:{p}"] for f, p in (("left", "phase1"), ("right", "phase2"))},
        "kl:phase2": {"left": roles["phase1"], "right": roles["phase2"], "data": plan.stages[roles["phase2"]].inputs["data"]},
        "kl:english": {"left": roles["phase1"], "right": roles["phase2"], "data": plan.stages[roles["phase1"]].inputs["data"]},
    }
    assert {role: dict(found[role].inputs) for role in sides} == sides
    base = found["drift:base-phase1"].spec
    assert isinstance(base, DriftSpec) and base.checkpoints["right"].hub == "org/a"
    asked = insight(plan, "none", "instruct")["activations:phase1"].spec
    assert isinstance(asked, ActivationsSpec) and asked.checkpoints["model"].hub == "org/a-it"
    quality = insight(plan, "GR_5")["replay_quality"]
    assert plan.stages[quality.inputs["replay"]].kind == "replay" and quality.inputs["model"] == roles["phase1"]
    assert plan.stages[quality.inputs["english"]].label == "en"
