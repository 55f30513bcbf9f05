"""Checkpoints on an S3 that copies nothing large, loses answers and refuses half of what it is asked."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from numbersengine import Numbers
from s3double import Cut, Refuse

from cft_ray.storage import bucket as bucket_module
from cft_ray.storage import retry
from cft_ray.storage.root import Storage
from cft_ray.training import group
from cft_ray.training.checkpoint import Checkpoints, Progress
from cft_ray.training.records import StepRecords

DENIED = Refuse(403, b"<Error><Code>AccessDenied</Code></Error>")
TOO_LARGE = Refuse(400, b"<Error><Code>InvalidRequest</Code><Message>The copy source is too large</Message></Error>")


@pytest.fixture
def storage(s3, monkeypatch) -> Storage:
    monkeypatch.setenv(retry.VARIABLE, "30")
    monkeypatch.setattr(bucket_module, "PART", 5 * 2**20)
    return Storage(f"s3://{s3.bucket()}/run")


def save(storage: Storage, local: Path, step: int) -> None:
    engine: Any = Numbers(step, size=2**20 + 1)  # 8 MiB: two parts
    Checkpoints(storage.uri, local).save(engine, Progress(step, step, step, StepRecords(), "this"))


def test_shards_in_parts_without_a_copy_through_failures(storage, s3, tmp_path):
    turn = itertools.count()
    trouble = [None, Refuse(503), None, Cut(), None, None, Cut(after=True)]
    with group.joined():
        with s3.behaving(lambda asked: TOO_LARGE if asked.copy else trouble[next(turn) % len(trouble)]):
            save(storage, tmp_path, 3)
            save(storage, tmp_path, 6)
        assert not any(asked.copy for asked in s3.asked)
        assert [entry.name for entry in storage.list()] == ["step-00000006-0001"]
        engine: Any = Numbers(0, size=2**20 + 1)
        found = Checkpoints(storage.uri, tmp_path).resume(engine, "this")
        assert found is not None and found.step == 6 and engine.value == 6.0


def test_a_shard_that_is_cut_short_there_is_passed_over(storage, s3, tmp_path):
    with group.joined():
        save(storage, tmp_path, 3)
        with s3.behaving(lambda asked: DENIED if "delete" in asked.path else None):
            save(storage, tmp_path, 6)  # the one before cannot be removed: a warning
        name = "step-00000006-0001"
        data = storage.read(name, "shard-0-of-1.safetensors")
        assert data is not None
        storage.write(name, "shard-0-of-1.safetensors", data=data[:-4] + b"oops")
        engine: Any = Numbers(0, size=2**20 + 1)
        found = Checkpoints(storage.uri, tmp_path).resume(engine, "this")
        assert found is not None and found.step == 3 and engine.value == 3.0
