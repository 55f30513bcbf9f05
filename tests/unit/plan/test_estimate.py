"""Estimates, against sums worked out by hand and the models' published sizes."""

import math
from dataclasses import replace
from typing import Any

import pytest

from cft_ray.data.toy import TOY, generate
from cft_ray.errors import UserError
from cft_ray.grid.schema import grid_from_text, load_grid
from cft_ray.grid.settings import ScratchModel, TrainingSettings
from cft_ray.plan.build import build
from cft_ray.plan.estimate import Estimate, Estimator, estimate_plan, too_large
from cft_ray.plan.known import SHAPES, Shape, Size, scratch_shape
from cft_ray.plan.memory import training_memory
from cft_ray.plan.specs import SPECS
from cft_ray.plan.stage import Plan


def test_published_parameter_counts():
    assert SHAPES["mistralai/Mistral-7B-v0.1"].parameters == 7_241_732_096
    assert SHAPES["meta-llama/Meta-Llama-3-8B"].parameters == 8_030_261_248


def test_zero3_states_are_16_bytes_a_parameter_split_over_the_workers():
    shape = SHAPES["mistralai/Mistral-7B-v0.1"]
    for workers in (1, 8):
        memory = training_memory(shape, TrainingSettings(), workers)
        states = memory.parameters + memory.gradients + memory.master + memory.moments
        assert states == pytest.approx(16 * shape.parameters / workers)
    off = training_memory(shape, TrainingSettings(offload="optimizer"), 8)
    assert (off.master, off.moments) == (0, 0) and off.parameters > 0
    assert training_memory(shape, TrainingSettings(offload="all"), 8).parameters == 0


def test_activations_and_logits_by_hand():
    shape = Shape(layers=2, hidden=8, heads=2, kv_heads=1, intermediate=16, vocabulary=10, head_size=4)
    training = TrainingSettings(micro_batch_tokens=100, max_length=50)
    # Per token and block, two bytes each: four of width 8 (input, two norms, residual), queries and attention's output (8
    # each), keys and values (4 each), four of width 16 (gate, up, activation, product).
    per_token = 2 * (4 * 8 + 2 * 8 + 2 * 4 + 4 * 16)
    memory = training_memory(shape, training, 1)
    assert memory.activations == 2 * 100 * per_token
    # All logits fit at once: fp32 and a bf16 gradient; the head's gradient (10 x 8) and the hidden states' (100 x 8).
    assert memory.logits == 100 * 10 * (4 + 2) + 2 * (10 * 8 + 100 * 8)
    wide = training_memory(replace(shape, vocabulary=2**20), training, 1)
    assert wide.logits == 2**25 * (4 + 2) + 2 * (2**20 * 8 + 100 * 8)  # 2**25 of the 100 x 2**20 logits at a time
    recomputed = training_memory(shape, training.model_copy(update={"gradient_checkpointing": True}), 1)
    assert recomputed.activations == 100 * per_token + 2 * 100 * 2 * 8


def estimates(*sets, path):
    grid = load_grid(path, sets)
    plan = build(grid)
    found = estimate_plan(plan, grid)
    by_label: dict[str, Any] = {plan.stages[fingerprint].label: estimate for fingerprint, estimate in found.items()}
    return by_label, plan


def test_full_grid(repository):
    found, plan = estimates(path=repository / "grids/full.yaml")
    phase1 = found["mistral-7b alpaca"]
    assert phase1.steps == 4 * math.ceil(52_002 / 16)
    length = (353 + 170) / 4
    tokens = phase1.steps * 16 * length
    assert phase1.tokens == pytest.approx(tokens)
    flops = tokens * (6 * 7_241_732_096 + 6 * 32 * 4096 * length)
    assert phase1.flops == pytest.approx(flops)
    assert phase1.seconds == pytest.approx(flops / (312e12 * 0.4 * 8))
    assert phase1.device_hours == pytest.approx(flops / (312e12 * 0.4) / 3600)
    assert phase1.money == pytest.approx(3.5 * flops / (312e12 * 0.4) / 3600)
    assert found["mistral-7b alpaca→multialpaca none"].steps == 33_176  # the study: about 33,175
    replay = found["mistral-7b alpaca→multialpaca replay"]
    assert replay.rows == math.ceil(0.1 * 132_701) and replay.tokens == replay.rows * 1024
    unknown = found["mistral-7b openorca"]
    assert unknown.steps is not None and unknown.seconds is None and unknown.unknown == "its rows' length"
    assert found["mistral-7b alpaca→multialpaca none xlsum"].unknown == "the benchmark's items"
    assert {stage.cost for stage in plan.stages.values() if stage.label == "mistral-7b alpaca"} == {phase1.seconds}


def test_packing_and_size_hint(repository):
    sets = [
        "training={packing: 8192, epochs: 1}",
        "datasets.openorca.size_hint={rows: 1000, tokens_per_row: 500}",
    ]
    found, _ = estimates(*sets, path=repository / "grids/full.yaml")
    phase1 = found["mistral-7b openorca"]
    packs = math.ceil(1000 * 500 / 8192)
    assert phase1.steps == math.ceil(packs / 16) and phase1.tokens == phase1.steps * 16 * 8192


def test_toy_world_is_counted_by_its_bytes(repository):
    found, _ = estimates("evaluation.limit=10", path=repository / "grids/smoke.yaml")
    phase1 = found["mistral-toy alpaca"]
    rows = [row for row, _ in zip(generate("alpaca", "en"), range(50), strict=False)]
    length = sum(len(row["system"] + row["instruction"] + row["input"] + row["output"]) for row in rows) / 50 + 4
    assert phase1.rows == TOY["alpaca"].rows and phase1.tokens == pytest.approx(phase1.steps * 32 * length)
    assert found["mistral-toy alpaca toy_languages"].rows == 3 * 10


def test_nothing_is_guessed():
    grid = grid_from_text(
        "name: g\nstorage: x\nmodels: {a: {base: {hub: org/unknown}}}\n"
        "datasets: {d: {hub: org/d, format: alpaca, languages: [en]}}\npairs: [{phase1: d, phase2: d}]\nstrategies: [none]\n"
        "evaluation: {benchmarks: [ifeval]}\ncluster: {device: H100}\nresources: {finetune: {gpus: 1}}\n"
    )
    plan = build(grid)
    for fingerprint, estimate in estimate_plan(plan, grid).items():
        assert estimate.seconds is None and estimate.flops is None and estimate.memory_bytes is None
        assert plan.stages[fingerprint].cost > 0


def test_an_unknown_device_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="unknown device 'H10'") as raised:
        estimate_plan(Plan("g", {}, ()), grid_from_text(SMALL, "g.yaml", ["cluster={device: H10}"]))
    assert "H100" in str(raised.value.fix) and "cluster.device" in str(raised.value.where)


@pytest.mark.parametrize(
    ("known", "kind", "seconds"),
    [
        ({"seconds": 7.0, "flops": 1e30, "steps": 9}, "finetune", 7.0),
        ({"flops": 1e11, "steps": 9}, "finetune", 1.0 + 2.0),
        ({"flops": 1e11}, "evaluate", 1.0 + 2.0),
        ({"flops": 1e11}, "replay", 1.0 + 2.0),
        ({"flops": 1e11}, "embed", 2.0),
        ({"steps": 20}, "finetune", 1.0 + 2.0),
        ({"steps": 20}, "drift", 2.0),
        ({}, "somebody's own kind", 3.0),
    ],
)
def test_the_order_of_stages_rests_on_the_best_that_is_known(known, kind, seconds):
    assert Estimate(**known).cost(kind) == pytest.approx(seconds)


def test_kinds_of_which_nothing_is_known_compare_as_on_a_laptop():
    quick, short, usual = dict.fromkeys(("dataset", "similarity", "covariance"), 0.3), {"drift": 1.0}, 3.0
    long = {"replay": 10.0, "evaluate": 10.0, "finetune": 30.0}
    looks = dict.fromkeys(("embed", "activations", "divergence", "replay_quality"), usual)
    own = [kind for kind, spec in SPECS.items() if spec.module is None]  # not those that other tests plant
    assert {kind: Estimate().cost(kind) for kind in own} == quick | short | looks | long


SMALL = """\
name: g
storage: x
models: {a: {base: {scratch: {}, train: {data: d, training: {steps: 5}}}}, h: {base: {hub: mistralai/Mistral-7B-v0.1}}}
datasets:
  d: {toy: alpaca, languages: [en]}
  h: {hub: tatsu-lab/alpaca, format: alpaca, languages: [en], rows: 1000}
  m: {hub: DAMO-NLP-MT/multialpaca, format: alpaca, languages: [de, es], english: h, rows: 500}
pairs: [{phase1: h, phase2: m}]
strategies: [none, GR_10]
template: plain
training: {epochs: 2, batch_size: 10}
evaluation: {benchmarks: [ifeval, mmlu, xquad, toy_letters]}
cluster: {device: A100-80GB, mfu: 0.5, price_per_device_hour: 2.0, characters_per_token: 3.0}
resources: {finetune: {workers: 2, gpus: 1}, evaluate: {gpus: 1}, replay: {gpus: 1}}
"""


def small(*sets: str) -> dict[str, Any]:
    grid = grid_from_text(SMALL, "g.yaml", sets)
    plan = build(grid)
    return {plan.stages[key].label: estimate for key, estimate in estimate_plan(plan, grid).items()}


@pytest.mark.parametrize(("template", "characters"), [("alpaca", 170), ("chat", 40), ("plain", 4), ("toy", 4)])
def test_tokens_of_a_row_with_its_template(template, characters):
    found = small(f"template={template}")["h h"]
    assert found.rows == 1000 and found.steps == 2 * 100
    assert found.tokens == pytest.approx(200 * 10 * (353 + characters) / 3)
    cut = small(f"template={template}", "training.max_length=10")["h h"]
    assert cut.tokens == 200 * 10 * 10


def test_rows_that_the_grid_keeps_are_no_more_than_there_are():
    assert small()["h h→m none"].rows == 1000 and small()["m"].rows == 1000  # 500 of each of two languages
    assert small("datasets.h.rows=60_000")["h h"].rows == 52_002
    unknown = small("datasets.m.hub=nobody/knows")["h h→m none"]
    assert unknown.rows is None and unknown.steps is None and unknown.unknown == "the data set's rows"
    assert small("datasets.m.hub=nobody/knows", "training={steps: 7}")["h h→m none"].unknown == "its rows' length"


def test_a_size_hint_replaces_what_is_known():
    found = small("datasets.h.size_hint={rows: 40, tokens_per_row: 25}")["h h"]
    assert (found.rows, found.steps, found.tokens) == (40, 8, 8 * 10 * 25)
    bounded = small("datasets.h.size_hint={rows: 40, tokens_per_row: 25}", "training.max_length=20")["h h"]
    assert bounded.tokens == 8 * 10 * 20


def test_packs_are_filled_and_their_number_rounded_up():
    found = small("training={packing: 100, epochs: 3, batch_size: 10}", "datasets.h.size_hint={rows: 41, tokens_per_row: 50}")[
        "h h"
    ]
    assert found.steps == 3 * 3 and found.tokens == 9 * 10 * 100  # 2,050 tokens: 21 packs, 3 steps of 10 a pass


def test_time_and_money_of_what_is_trained_generated_and_asked():
    found = small()
    mistral = SHAPES["mistralai/Mistral-7B-v0.1"]
    trained = found["h h"]
    seconds = trained.flops / (312e12 * 0.5 * 2)
    assert trained.seconds == pytest.approx(seconds) and trained.device_hours == pytest.approx(2 * seconds / 3600)
    assert trained.money == pytest.approx(2 * 2 * seconds / 3600)
    replay = found["h h→m replay"]
    assert (replay.rows, replay.tokens) == (100, 100 * 1024)
    assert replay.flops == pytest.approx(2 * mistral.parameters * 100 * 1024)
    assert replay.memory_bytes == 2 * mistral.parameters
    # IFEval: 541 questions of 211 characters, 1,280 tokens each; MMLU's answers are read, not written.
    asked = found["h h ifeval"]
    assert asked.rows == 541 and asked.tokens == pytest.approx(541 * (211 / 3 + 1280))
    assert found["h h mmlu"].tokens == pytest.approx(14_042 * 4 * 445 / 3)
    few = small("evaluation.limit=2", "evaluation.generation.max_new_tokens=9")
    assert few["h h xquad"].rows == 2 * 11 and few["h h xquad"].tokens == pytest.approx(22 * (821 / 3 + 9))
    assert few["h h ifeval"].tokens == pytest.approx(2 * (211 / 3 + 9))
    assert small("cluster={device: A100-80GB}")["h h"].money is None
    nowhere = small("cluster={}")["h h"]
    assert nowhere.seconds is None and nowhere.unknown == "the device" and nowhere.flops is not None


def test_a_stage_without_devices_has_no_time():
    found = small("resources={evaluate: {gpus: 0}}")
    assert found["h h ifeval"].seconds is None and found["h h ifeval"].unknown == "the device"
    assert found["h"].seconds is None and found["h"].unknown is None and found["h"].rows == 1000


def test_what_does_not_fit_its_device_is_said():
    grid = grid_from_text(SMALL, "g.yaml")
    stage = next(stage for stage in build(grid).stages.values() if stage.label == "h h")
    assert too_large(stage, Estimate(memory_bytes=80e9), grid) is None and too_large(stage, Estimate(), grid) is None
    said = too_large(stage, Estimate(memory_bytes=80.6e9), grid)
    assert said is not None and said.startswith("h h needs about 81 GB on each A100-80GB, which has 80 GB")
    assert too_large(stage, Estimate(memory_bytes=1e15), grid_from_text(SMALL, "g.yaml", ["cluster={}"])) is None
    assert small("datasets.h.size_hint={rows: 40}")["h h"].memory is not None
    parts = small()["h h"].memory
    assert parts is not None and small()["h h"].memory_bytes == parts.total


def test_without_the_length_of_rows_packs_have_tokens_and_no_time():
    found = small("datasets.m.hub=nobody/knows", "training={packing: 100, steps: 7, batch_size: 10}")["h h→m none"]
    assert (found.tokens, found.steps, found.flops, found.unknown) == (7 * 10 * 100, 7, None, "its rows' length")


def test_without_rows_nothing_is_counted_whatever_their_length():
    grid = grid_from_text(SMALL, "g.yaml")
    plan = build(grid)
    estimator = Estimator(grid)
    stage = next(stage for stage in plan.stages.values() if stage.label == "h h")
    estimator._sizes[stage.inputs["data"]] = Size(tokens=50.0)
    found = estimator.of(stage.spec, stage.inputs, stage.resources)
    assert (found.steps, found.tokens, found.flops, found.unknown) == (None, None, None, "the data set's rows")


def test_the_shape_of_a_model_that_the_grid_describes():
    model = ScratchModel(hidden_size=256, layers=3, heads=8, kv_heads=2, intermediate_size=100)
    assert scratch_shape(model) == Shape(
        layers=3, hidden=256, heads=8, kv_heads=2, intermediate=100, vocabulary=259, head_size=32, tied=False
    )
    block = 256 * 256 + 2 * 256 * 2 * 32 + 256 * 256 + 3 * 256 * 100 + 2 * 256  # queries, keys and values, output, MLP, norms
    assert scratch_shape(model).parameters == 3 * block + 2 * 259 * 256 + 256
