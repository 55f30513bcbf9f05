"""Whole grids of light stages on an S3 that misbehaves, and two drivers on one bucket: all ends as on a folder."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drive import grid_plan
from faults import cuts, delays, no_copies, storm
from outcome import light
from s3double import Rule, S3Double
from toygraph import World

DRIVE = Path(__file__).resolve().parent.parent / "planted" / "drive.py"
STAGES = 13

pytestmark = pytest.mark.timeout(500)


@pytest.fixture(scope="module")
def driver(s3_server: S3Double, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A driver that runs one grid after the other."""
    environment = os.environ | s3_server.environment() | {"CFT_RAY_CACHE": str(tmp_path_factory.mktemp("cache"))}
    command = [sys.executable, str(DRIVE), "grid", "-", "0.2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def left(world: World) -> dict[str, Any]:
    return light(world.storage, grid_plan(world, 0).stages.values())


def go(driver: subprocess.Popen[str], world: World) -> dict[str, str]:
    assert driver.stdin is not None and driver.stdout is not None
    world.log.parent.mkdir(parents=True, exist_ok=True)
    driver.stdin.write(f"{world.log.parent} {world.storage}\n")
    driver.stdin.flush()
    return json.loads(driver.stdout.readline())


@pytest.fixture(scope="module")
def folder(driver: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the grid leaves in a folder."""
    world = World(tmp_path_factory.mktemp("folder"))
    assert set(go(driver, world).values()) == {"done"}
    return left(world)


@pytest.mark.parametrize("fault", ["storm", "cuts", "delays", "all at once"])
def test_a_grid_ends_as_on_a_folder(driver, folder, s3, tmp_path, fault):
    rules: dict[str, list[Rule]] = {
        "storm": [storm(10.0)],
        "cuts": [cuts()],
        "delays": [delays(1.5)],
        "all at once": [no_copies, storm(5.0, seed=1), cuts(0.05, seed=1), delays(1.0, seed=1)],
    }
    world = World(tmp_path, f"s3://{s3.bucket()}/run")
    with s3.behaving(*rules[fault], no_copies):
        ended = go(driver, world)
    assert len(ended) == STAGES and set(ended.values()) == {"done"}
    assert left(world) == folder
    assert not any(asked.copy for asked in s3.asked)
    assert world.began() == world.ended() == dict.fromkeys(ended, 1)


def test_two_drivers_at_once_on_one_bucket(folder, s3, tmp_path):
    """Each with a machine's cache of its own; together they do each stage once."""
    world = World(tmp_path, f"s3://{s3.bucket()}/run")
    command = [sys.executable, str(DRIVE), "grid", str(tmp_path), "0.2", world.storage]
    drivers = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"CFT_RAY_CACHE": str(tmp_path / f"machine{number}")},
            text=True,
        )
        for number in range(2)
    ]
    for process in drivers:
        out, error = process.communicate(timeout=400)
        assert process.returncode == 0, error
        assert set(json.loads(out).values()) <= {"done", "cached"}
    assert left(world) == folder
    assert world.began() == world.ended() and set(world.began().values()) == {1}
