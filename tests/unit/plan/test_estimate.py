"""Estimates, against sums worked out by hand and the models' published sizes."""

import math
from dataclasses import replace
from typing import Any

import pytest

from cft_ray.data.toy import TOY, generate
from cft_ray.grid.schema import grid_from_text, load_grid
from cft_ray.grid.settings import TrainingSettings
from cft_ray.plan.build import build
from cft_ray.plan.estimate import estimate_plan
from cft_ray.plan.known import SHAPES, Shape
from cft_ray.plan.memory import training_memory


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
