"""A tiny training in all its forms against each other and against a plain PyTorch loop."""

import math
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tinymodels import of_architecture, weights_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft_ray.errors import StageFailed, UserError
from cft_ray.grid.settings import ScratchModel, Template, TrainingSettings
from cft_ray.plan.specs import StrategyRef
from cft_ray.training import model
from cft_ray.training.job import Job
from cft_ray.training.loop import train
from cft_ray.training.order import SampleOrder

HERE = Path(__file__).parent
STEPS, BATCH = 8, 6
SHAPE = ScratchModel(hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=96, max_positions=256)
TRAINING = TrainingSettings(
    learning_rate=3e-3, steps=STEPS, batch_size=BATCH, warmup_steps=3, precision="fp32", max_length=200, checkpoint_every=3
)
FREEZE = StrategyRef(use="freeze_rows_strategy:FreezeRows", version=1)


def pairs():
    generator = random.Random(0)
    words = [(f"say {generator.randint(0, 99)} ", "abc" * generator.randint(1, 30)) for _ in range(20)]
    return [*words, ("too long", "x" * 300)]


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_the_users_strategy():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.append(str(HERE))
    yield
    sys.path.remove(str(HERE))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    model.create(SHAPE, 0, root / "initial")
    columns = {"system": "", "input": "", "language": "en"}
    rows = [{"id": str(i), "instruction": ask, "output": answer, **columns} for i, (ask, answer) in enumerate(pairs())]
    pq.write_table(pa.Table.from_pylist(rows), root / "rows.parquet")
    return root


def job(world, name, strategy=None, model="initial", **changes):
    folder = world / name
    folder.mkdir(exist_ok=True)
    made = Job(
        model=str(world / model),
        rows=str(world / "rows.parquet"),
        template=Template(name="plain"),
        training=TRAINING.model_copy(update=changes),
        strategy=strategy,
        seed=1,
        output=str(folder),
        scratch=str(folder / "scratch"),
        checkpoints=str(folder / "checkpoints"),
        fingerprint="f" * 64,
    )
    made.write(folder / "job.json")
    return made


def losses(made):
    return pq.read_table(Path(made.output) / "tables" / "steps.parquet").column("loss").to_pylist()


def weights(made):
    return load_file(Path(made.output) / "model" / "model.safetensors")


def assert_same(left, right, tolerance):
    assert left.keys() == right.keys()
    for name in left:
        assert (left[name] - right[name]).norm() <= tolerance * right[name].norm(), name


def launch(made, workers, until=None):
    """Start ranks as a launcher does; all are killed, hard, once the step ``until`` is printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parents[2]}", "WORLD_SIZE": str(workers)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "cft_ray.training", *(str(Path(one.output) / "job.json") for one in made)]
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=(Path(made[0].output) / f"rank-{rank}.log").open("w"),
            text=True,
        )
        for rank in range(workers)
    ]
    assert ranks[0].stdout is not None
    for line in ranks[0].stdout:
        if until is not None and f'"step": {until},' in line:
            for process in ranks:
                process.kill()
    codes = [process.wait() for process in ranks]
    assert until is not None or not any(codes), (Path(made[0].output) / "rank-0.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def alone(world):
    made = job(world, "alone")
    return made, train(made)


@pytest.fixture(scope="module")
def pair_of_workers(world):
    """A model, the same with a strategy, and one with buffers in its files, in bf16 and without any change to speak of."""
    with weights_of(Path(of_architecture("glm4_moe", world / "buffers"))) as tensors:
        for name in buffers_of(tensors):
            tensors[name] = torch.tensor([0.7, -0.3, 0.1234567, -1.1])
    bf16 = {"precision": "bf16", "learning_rate": 1e-9, "steps": 2, "batch_size": 20, "max_length": 128, "checkpoint_every": None}
    made = [
        job(world, "two"),
        job(world, "two-frozen", strategy=FREEZE),
        job(world, "two-buffers", model="buffers", **bf16),
    ]
    launch(made, workers=2)
    return made


def buffers_of(tensors):
    """A router's biases, which no gradient moves."""
    return [name for name in tensors if name.endswith("e_score_correction_bias")]


def samples_of(folder):
    """(ids, tokens of the prompt) of each row, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    samples = []
    for ask, answer in pairs()[:-1]:  # the last is too long
        prompt = tokenizer(f"{ask}\n\n").input_ids
        whole = [*prompt, *tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        samples.append((whole, len(prompt)))
    return samples


def test_equals_a_plain_pytorch_loop(world, alone):
    made, summary = alone
    network = AutoModelForCausalLM.from_pretrained(made.model, attn_implementation="eager")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.0)
    samples = samples_of(made.model)
    order = SampleOrder(torch.tensor([len(ids) for ids, _ in samples]).numpy(), made.training, made.seed)
    reference = []
    for step in range(STEPS):
        batch = [samples[index] for index in order.batch(step)]
        width = max(len(ids) for ids, _ in batch)
        input_ids, labels = torch.full((BATCH, width), 2), torch.full((BATCH, width), -100)
        for row, (ids, prompt) in enumerate(batch):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, prompt : len(ids)] = torch.tensor(ids[prompt:])
        logits = network(input_ids, attention_mask=(input_ids != 2).long()).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        done = max(step - 3, 0) / (STEPS - 3)
        rate = 3e-3 * (step / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * done)))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        reference.append(loss.item())
    assert losses(made) == pytest.approx(reference, abs=1e-4)
    assert_same(weights(made), {name: tensor.detach() for name, tensor in network.state_dict().items()}, 1e-3)
    assert reference[-1] < reference[0] - 0.5
    assert (summary.counts.used, summary.counts.too_long) == (20, 1)


def test_two_workers_give_the_same_curve_and_weights(alone, pair_of_workers):
    assert losses(pair_of_workers[0]) == pytest.approx(losses(alone[0]), abs=1e-4)
    assert_same(weights(pair_of_workers[0]), weights(alone[0]), 1e-3)


def test_buffers_of_the_files_come_through_two_workers_in_bf16_and_take_part_in_the_loss(world, pair_of_workers):
    """Every row is in each batch and nothing moves: the losses are those of plain transformers on either folder."""
    made = pair_of_workers[2]
    before, after = load_file(Path(made.model) / "model.safetensors"), weights(made)
    assert len(buffers_of(before)) >= 3 and before.keys() == after.keys()
    for name, tensor in before.items():
        expected = tensor if name in buffers_of(before) else tensor.to(torch.bfloat16)
        assert after[name].dtype == expected.dtype and torch.equal(after[name], expected), name

    def plain(folder, change=lambda buffer: buffer):
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval()
        for name, buffer in network.named_buffers():
            if buffers_of([name]):
                buffer.copy_(change(buffer))
        found = []
        with torch.no_grad():
            for ids, prompt in samples_of(made.model):
                logits = network(input_ids=torch.tensor([ids])).logits[0, prompt - 1 : -1].float()
                found.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[prompt:]), reduction="none"))
        return float(torch.cat(found).mean())

    exported = plain(Path(made.output) / "model")
    assert exported == plain(made.model)
    assert losses(made) == pytest.approx([exported, exported], rel=5e-3)
    assert abs(plain(made.model, torch.zeros_like) - exported) > 2e-2 * exported


def test_padded_and_small_micro_batches_and_recomputation_give_the_same(world, alone):
    padded = job(world, "padded", padding="padded")
    small = job(world, "small", micro_batch_tokens=150)
    recomputed = job(world, "recomputed", gradient_checkpointing=True)
    for made in (padded, small, recomputed):
        train(made)
    assert losses(padded) == pytest.approx(losses(alone[0]), abs=1e-5)
    assert losses(small) == pytest.approx(losses(alone[0]), abs=1e-4)
    assert losses(recomputed) == losses(alone[0])
    assert_same(weights(padded), weights(alone[0]), 1e-3)
    assert_same(weights(small), weights(alone[0]), 1e-3)


def test_bf16_keeps_master_weights_in_fp32(world):
    made = job(world, "bf16", precision="bf16", learning_rate=2e-6, warmup_steps=0, schedule="constant")
    train(made)
    before = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.bfloat16).state_dict()
    after = weights(made)
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values())
    moved = sum((after[name] != before[name]).sum().item() for name in after)
    # 8 steps of 2e-6 are below bf16's resolution for most weights, but not for all when they add up in fp32
    assert 0 < moved < sum(tensor.numel() for tensor in after.values())


def test_killed_and_resumed_gives_bit_identical_losses(world, alone):
    made = job(world, "killed")
    launch([made], workers=1, until=5)
    assert not (Path(made.output) / "model").exists()
    summary = train(made)
    assert summary.resumed_at == 3
    assert losses(made) == losses(alone[0])
    ours, theirs = weights(made), weights(alone[0])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_two_workers_continues_on_one(world, alone, pair_of_workers):
    made = job(world, "fewer")
    shutil.copytree(pair_of_workers[0].checkpoints, made.checkpoints)
    summary = train(made)
    assert summary.resumed_at == 6
    assert losses(made) == pytest.approx(losses(alone[0]), abs=1e-4)
    assert_same(weights(made), weights(alone[0]), 1e-3)


def test_a_checkpoint_without_its_marker_does_not_exist(world, alone):
    made = job(world, "torn")
    shutil.copytree(alone[0].checkpoints, made.checkpoints)
    (Path(made.checkpoints) / "step-00000006-0001" / "marker.json").unlink()
    assert train(made).resumed_at == 0


def test_the_exported_folder_is_a_plain_hugging_face_model(alone):
    folder = Path(alone[0].output) / "model"
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    stored = weights(alone[0])
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("žluť 你好", add_special_tokens=False).input_ids) == "žluť 你好"
    assert tokenizer.chat_template
    assert (folder / "generation_config.json").exists()


def test_a_users_strategy_freezes_bit_exactly_under_one_and_two_workers(world, pair_of_workers):
    single = job(world, "frozen", strategy=FREEZE)
    summary = train(single)
    initial = load_file(Path(single.model) / "model.safetensors")
    assert summary.facts == {"rows_frozen": 16}
    assert 0 < summary.trainable_fraction < 1
    for made in (single, pair_of_workers[1]):
        after = weights(made)
        for name, before in initial.items():
            if name.startswith("model.layers.1."):
                assert torch.equal(after[name], before)
            elif name == "model.layers.0.self_attn.q_proj.weight":
                assert torch.equal(after[name][:16], before[:16])
                assert (after[name][16:] != before[16:]).all()
            else:
                assert not torch.equal(after[name], before)


def test_weight_decay_on_masked_gradients_is_refused(world):
    with pytest.raises(UserError):
        train(job(world, "decay", strategy=FREEZE, weight_decay=0.1))


def test_a_loss_that_is_not_finite_ends_the_training(world):
    made = job(world, "diverged", learning_rate=1e30, max_grad_norm=None, warmup_steps=0)
    with pytest.raises(StageFailed):
        train(made)
    assert not (Path(made.output) / "model").exists()


@pytest.mark.parametrize("what", ["Gradients", "Weights"])
def test_what_is_no_number_after_the_last_step_is_not_published(world, what):
    """The loss of the only step is finite: nothing but the gradients, or the weights themselves, tells."""
    strategy = StrategyRef(use=f"not_numbers_strategies:Endless{what}", version=1)
    made = job(world, f"endless {what}", strategy=strategy, steps=1, warmup_steps=0)
    with pytest.raises(StageFailed, match=f"{what.lower()} .*no numbers"):
        train(made)
    assert not (Path(made.output) / "model").exists()


def test_packs_are_trained_on_as_separate_samples(world):
    made = job(world, "packed", packing=200, batch_size=2)
    summary = train(made)
    assert summary.samples > 2 * STEPS
    steps = pq.read_table(Path(made.output) / "tables" / "steps.parquet").to_pydict()
    assert max(steps["tokens"]) <= 2 * 200
    assert steps["loss"][-1] < steps["loss"][0]
