"""What strategies freeze, choose and export, in real ZeRO-3 trainings of a tiny model; a user's own strategy among them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cft_ray.data import rows as canonical
from cft_ray.drift.measure import measure_drift
from cft_ray.errors import UserError
from cft_ray.grid.settings import ScratchModel, Template, TrainingSettings
from cft_ray.plan.specs import StrategyRef
from cft_ray.strategies import Strategy, build, reference
from cft_ray.strategies.lora import LowRank
from cft_ray.training import model as models
from cft_ray.training.job import Job
from cft_ray.training.loop import Summary, train

LAYERS, TOP = 4, 2
HEADS = {"q": 4, "k": 2, "v": 2}
SIZE = 32
SHAPE = ScratchModel(hidden_size=128, layers=LAYERS, heads=4, kv_heads=2, intermediate_size=64, max_positions=128)
TRAINING = TrainingSettings(learning_rate=1e-3, steps=3, batch_size=4, warmup_steps=0, precision="fp32", max_length=128)

Weights = dict[str, torch.Tensor]
PROMPT = torch.arange(3, 43).unsqueeze(0)


class OnlyTheEmbedding(Strategy):
    """Trains nothing but the embedding."""

    def prepare(self, model, inputs, seed):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("embed_tokens.weight"))
        return model

    def facts(self, model):
        return {"trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad]}


class AnsweringLowRank(LowRank):
    """LoRA; before it exports, the adapters in place, the model answers a prompt."""

    answers: str

    def exported(self, model):
        model.eval()
        with torch.no_grad():
            torch.save(model(input_ids=PROMPT).logits.clone(), Path(self.answers))
        yield from super().exported(model)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A base model, a Phase 1 that changed each head of each layer by an amount of its own, their drift, rows."""
    root = tmp_path_factory.mktemp("world")
    models.create(SHAPE, 0, root / "base")
    shutil.copytree(root / "base", root / "phase1")
    torch.manual_seed(1)
    weights = load_file(root / "base" / "model.safetensors")
    for tensor in weights.values():
        if tensor.ndim == 2:
            strength = 0.01 * torch.rand(tensor.shape[0] // SIZE + 1).repeat_interleave(SIZE)[: tensor.shape[0]]
            tensor.add_(strength.unsqueeze(1) * torch.randn_like(tensor))
    save_file(weights, root / "phase1" / "model.safetensors", metadata={"format": "pt"})
    drift = measure_drift(root / "phase1", root / "base")
    (root / "drift").mkdir()
    pq.write_table(drift.tensors, root / "drift" / "tensors.parquet")
    pq.write_table(drift.heads, root / "drift" / "heads.parquet")
    rows = canonical.table(
        {"id": str(n), "language": "de", "instruction": f"say {n}", "output": "abc" * (n % 5 + 1)} for n in range(12)
    )
    pq.write_table(rows, root / "rows.parquet")
    return root


@pytest.fixture(scope="module")
def before(world) -> Weights:
    return load_file(world / "phase1" / "model.safetensors")


@pytest.fixture(scope="module")
def change(world, before) -> Weights:
    base = load_file(world / "base" / "model.safetensors")
    return {name: before[name].double() - base[name].double() for name in base}


def job(world: Path, folder: Path, strategy: StrategyRef, **changes) -> Job:
    return Job(
        model=str(world / "phase1"),
        rows=str(world / "rows.parquet"),
        template=Template(name="plain"),
        training=TRAINING.model_copy(update=changes),
        seed=3,
        strategy=strategy,
        inputs={"drift": str(world / "drift")},
        output=str(folder / "out"),
        scratch=str(folder / "scratch"),
        checkpoints=str(folder / "checkpoints"),
    )


def trained(world: Path, folder: Path, strategy: Strategy | StrategyRef, **changes) -> tuple[Summary, Weights]:
    ref = reference(strategy) if isinstance(strategy, Strategy) else strategy
    summary = train(job(world, folder, ref, **changes))
    return summary, load_file(folder / "out" / "model" / "model.safetensors")


def changed_most(change: Weights) -> dict[tuple[str, int], set[int]]:
    """The study's choice, computed independently: for each projection and head the layers with the largest norms."""
    chosen = {}
    for p, heads in HEADS.items():
        for h in range(heads):
            w = [change[f"model.layers.{n}.self_attn.{p}_proj.weight"][h * SIZE : (h + 1) * SIZE] for n in range(LAYERS)]
            chosen[p, h] = set(torch.stack([x.norm() for x in w]).argsort(descending=True)[:TOP].tolist())
    return chosen


def assert_heads(before: Weights, after: Weights, chosen: dict[tuple[str, int], set[int]]) -> None:
    """Chosen head slices are bit-identical; every other slice and every other parameter changed."""
    assert before.keys() == after.keys()
    for name in before:
        parts = name.split(".")
        p = parts[-2].removesuffix("_proj")
        if p not in HEADS:
            assert not torch.equal(before[name], after[name]), name
            continue
        for h in range(HEADS[p]):
            rows = slice(h * SIZE, (h + 1) * SIZE)
            assert torch.equal(before[name][rows], after[name][rows]) == (int(parts[2]) in chosen[p, h]), (name, h)


def frozen_heads(facts: dict) -> dict[tuple[str, int], set[int]]:
    return {(p, int(h)): set(layers) for p, heads in facts["frozen_heads"].items() for h, layers in heads.items()}


def test_lf_h2_freezes_the_most_changed_heads_bit_exactly(world, before, change, tmp_path):
    summary, after = trained(world, tmp_path, build("LF_H2", {"layers": TOP}))
    chosen = changed_most(change)
    assert len({frozenset(layers) for layers in chosen.values()}) > 1  # the heads do not all choose alike
    assert_heads(before, after, chosen)
    assert frozen_heads(summary.facts) == chosen
    slices = sum(len(layers) for layers in chosen.values())
    total = sum(tensor.numel() for tensor in before.values())
    assert summary.facts["frozen_fraction"] == pytest.approx(slices * SIZE * 128 / total)


def test_lf_h2_under_two_workers(world, before, change, tmp_path):
    ref = reference(build("LF_H2", {"layers": TOP}))
    job(world, tmp_path, ref).write(tmp_path / "job.json")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, "-m", "cft_ray.training", str(tmp_path / "job.json")], check=True, timeout=300, capture_output=True)
    assert_heads(before, load_file(tmp_path / "out" / "model" / "model.safetensors"), changed_most(change))


def test_lf_h2_in_bf16(world, before, change, tmp_path):
    """Phase 1's weights as bf16 holds them are where Phase 2 begins, and where frozen slices end."""
    _, after = trained(world, tmp_path, build("LF_H2", {"layers": TOP}), precision="bf16", learning_rate=1e-2)
    rounded = {name: tensor.to(after[name].dtype) for name, tensor in before.items()}
    matrices = {name for name in before if before[name].ndim == 2}  # a vector's few numbers may round back
    assert_heads({name: rounded[name] for name in matrices}, {name: after[name] for name in matrices}, changed_most(change))


def test_lf_h1_freezes_blocks_drawn_with_the_seed(world, before, tmp_path):
    summary, after = trained(world, tmp_path, build("LF_H1", {"layers": TOP}))
    frozen = {n for n in range(LAYERS) if all(torch.equal(before[x], after[x]) for x in before if f"layers.{n}." in x)}
    assert len(frozen) == TOP
    assert set(summary.facts["frozen_blocks"]) == frozen
    for name in before:
        outside = not any(f"layers.{n}." in name for n in frozen)
        assert torch.equal(before[name], after[name]) != outside, name


def test_lora_trains_and_exports_a_plain_model_that_answers_as_the_adapted_one(world, before, tmp_path):
    settings = {"answers": str(tmp_path / "answers.pt"), "rank": 4, "alpha": 6.0, "target_modules": ["q_proj", "down_proj"]}
    ref = StrategyRef(use=f"{__name__}:AnsweringLowRank", version=1, settings=settings)
    summary, after = trained(world, tmp_path, ref, learning_rate=1e-2, padding="padded")  # `model(…)` needs plain attention
    applied = torch.load(tmp_path / "answers.pt", weights_only=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        merged = plain(input_ids=PROMPT).logits
        original = AutoModelForCausalLM.from_pretrained(world / "phase1", dtype=torch.float32).eval()(input_ids=PROMPT).logits
    torch.testing.assert_close(merged, applied, rtol=0, atol=1e-5)
    assert (merged - original).abs().max() > 1e-2
    assert before.keys() == after.keys()
    for name in before:
        adapted = name.endswith(("q_proj.weight", "down_proj.weight"))
        assert torch.equal(before[name], after[name]) != adapted, name
        if adapted:
            assert torch.linalg.svdvals((after[name] - before[name]).double())[4:].max() < 1e-6
    assert summary.facts["adapted_layers"] == 2 * LAYERS


def test_lora_begins_at_the_phase_1_model_and_depends_on_the_seed(world):
    inputs = torch.arange(3, 20).unsqueeze(0)
    original = AutoModelForCausalLM.from_pretrained(world / "phase1", dtype=torch.float32)
    lora = build("LoRA", {"rank": 4})
    adapted = [
        lora.prepare(AutoModelForCausalLM.from_pretrained(world / "phase1", dtype=dtype), {}, seed)
        for seed, dtype in ((0, torch.float32), (0, torch.float32), (1, torch.float32), (0, torch.bfloat16))
    ]
    with torch.no_grad():
        assert torch.equal(adapted[0](input_ids=inputs).logits, original(input_ids=inputs).logits)
    first = [dict(model.named_parameters())["model.layers.0.mlp.up_proj.lora_A.default.weight"] for model in adapted]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert {parameter.dtype for parameter in adapted[3].parameters()} == {torch.bfloat16}


def test_a_users_own_strategy_by_import_path(world, before, tmp_path):
    summary, after = trained(world, tmp_path, StrategyRef(use=f"{__name__}:OnlyTheEmbedding", version=1))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["model.embed_tokens.weight"]
    assert summary.facts == {"trained": ["model.embed_tokens.weight"]}


# Choices and refusals, without training


def prepared(world: Path, strategy: Strategy, seed: int = 0) -> dict:
    model = AutoModelForCausalLM.from_pretrained(world / "phase1", dtype=torch.float32)
    return strategy.facts(strategy.prepare(model, {"drift": world / "drift"}, seed))


def test_granularity_projection_ranks_whole_projections(world, change):
    found = frozen_heads(prepared(world, build("LF_H2", {"layers": TOP, "granularity": "projection"})))
    for p, heads in HEADS.items():
        norms = torch.stack([change[f"model.layers.{n}.self_attn.{p}_proj.weight"].norm() for n in range(LAYERS)])
        layers = set(norms.argsort(descending=True)[:TOP].tolist())
        assert all(found[p, h] == layers for h in range(heads))


def test_granularity_block_ranks_whole_blocks(world, change):
    facts = prepared(world, build("LF_H2", {"layers": TOP, "granularity": "block"}))
    norms = [torch.cat([x.flatten() for name, x in change.items() if f"layers.{n}." in name]).norm() for n in range(LAYERS)]
    assert set(facts["frozen_blocks"]) == set(torch.stack(norms).argsort(descending=True)[:TOP].tolist())
    assert facts["frozen_heads"] == {}


def test_lf_h1_draws_differ_by_seed_and_repeat(world):
    draws = [tuple(prepared(world, build("LF_H1", {"layers": TOP}), seed)["frozen_blocks"]) for seed in (0, 0, 1, 2, 3, 4)]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 1


@pytest.mark.parametrize(
    ("use", "settings", "what"),
    [
        ("LF_H1", {"layers": 5}, "has 4"),
        ("LF_H2", {"layers": 5}, "has 4"),
        ("LoRA", {"target_modules": ["q_proj", "c_attn"]}, "named c_attn"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(world, use, settings, what):
    with pytest.raises(UserError, match=what):
        prepared(world, build(use, settings))


def test_an_architecture_without_known_heads_is_refused(world, tmp_path):
    drift = measure_drift(world / "phase1", world / "base")
    pq.write_table(drift.heads.slice(0, 0), tmp_path / "heads.parquet")
    model = AutoModelForCausalLM.from_pretrained(world / "phase1")
    with pytest.raises(UserError, match="architecture"):
        build("LF_H2", {"layers": 1}).prepare(model, {"drift": tmp_path}, 0)


def test_weight_decay_with_frozen_rows_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="weight_decay"):
        trained(world, tmp_path, build("LF_H2", {"layers": TOP}), weight_decay=0.1)
