"""What the GPU benchmarks compute by themselves, without a GPU."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks" / "gpu"))

import pack


def test_all_that_is_packed_is_pinned():
    wheels = pack.wanted(trl=False) + pack.wanted(trl=True)
    assert len(wheels) == len(set(wheels)) == len(pack.NEEDED + pack.LORA + pack.TRL)
    assert not {"ray", "deepspeed", "vllm", "polars", "obstore"} & {wheel.partition("==")[0] for wheel in wheels}


def test_pins_are_read():
    assert pack.pinned("a-b==1.2 \\\n    --hash=sha256:00\n# via c==3\nd==4.0; python_version < '4'\n") == {
        "a-b": "1.2",
        "d": "4.0",
    }


@pytest.mark.parametrize(
    ("mib", "over"), [([10, 20], 0), ([65, 1], 2), ([40, 30], 1)], ids=["fits", "one too large", "too large together"]
)
def test_sizes_are_limited(mib, over):
    assert len(pack.too_large({str(place): size * 2**20 for place, size in enumerate(mib)})) == over


def test_an_h100_gets_fewer_layers_and_an_h200_all():
    """By hand: 18 bytes a parameter of 19 blocks and two embeddings are 80 GB; whole, 16 bytes of 7.24 billion are 116 GB."""
    import train_step
    import world

    settings = train_step.settings_of(train_step.batches(False)[1], 1)
    assert settings.micro_batch_tokens == 8192
    whole = world.MODELS["mistral-7b"]
    assert world.fitting(whole, settings, 150e9) == whole
    on_h100 = world.fitting(whole, settings, 85e9)
    assert 14 <= on_h100.layers < 20
    assert world.PLAIN_BYTES * on_h100.parameters < 85e9


def test_the_studys_batch_has_alpacas_mean_length():
    import train_step

    study = train_step.batches(False)[0]
    assert len(study.lengths) == 16 and sum(study.lengths) / 16 == pytest.approx(122, abs=0.6)


def test_a_batch_is_padded_and_only_answers_are_targets():
    import numpy as np
    import plain
    import torch

    rows = [(np.array([5, 6, 7]), np.array([False, True, True])), (np.array([8, 9]), np.array([False, True]))]
    batch, targets = plain.padded_batch(rows, 0, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]] and batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]] and targets == 3
