"""Stages that stand still, that take too long, that lose their nodes, whose rows do not reach the tables: on real Ray."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from awaystage import AwaySpec
from rich.console import Console
from toygraph import World, plan

from cft_ray.execute.run import Outcome, run
from cft_ray.execute.watch import RETRIES, most_seconds
from cft_ray.plan.stage import Plan, Resources, Stage

PLANTED = Path(__file__).resolve().parent.parent / "planted"


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return World(tmp_path)


def away(world: World, name: str, resources: Resources | None = None, seconds: float = 0.0, still: int = 0) -> Stage:
    spec = AwaySpec(name=name, log=str(world.log), seconds=seconds, still=still)
    return Stage(spec, {}, label=name, resources=resources or Resources())


def go(world: World, planned: Plan) -> Outcome:
    return run(planned, world.storage, console=Console(file=io.StringIO()))


def alive(world: World) -> list[int]:
    """Processes that began the work and are still there after a while."""
    pids = {int(line.split()[1]) for line in world.log.read_text().splitlines()}
    assert pids
    _, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    return [process.pid for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_work_that_stands_still_is_killed_and_tried_again(world, ray_session):
    stage = away(world, "stuck", Resources(still_minutes=0.1), still=1, seconds=1.0)
    begun = time.monotonic()
    outcome = go(world, plan(stage))
    assert outcome.exit_code == 0 and world.began()["stuck"] == 2 and world.ended()["stuck"] == 1
    assert world.attempts(stage)[-1] == "done" and "failed" in world.attempts(stage)
    errors = world.table("stages").filter(fingerprint=stage.fingerprint, status="failed")["error"].to_list()
    assert any("no progress for 6 s" in error for error in errors), errors
    assert time.monotonic() - begun < 120


def test_work_that_tells_of_progress_is_left_alone(world, ray_session):
    stage = away(world, "busy", Resources(still_minutes=0.2), seconds=15.0)
    assert go(world, plan(stage)).exit_code == 0 and world.began()["busy"] == 1


def test_work_that_always_stands_still_fails_with_the_reason(world, ray_session):
    stage = away(world, "stuck", Resources(still_minutes=0.1), still=9)
    outcome = go(world, plan(stage))
    (failed,) = outcome.failed
    assert outcome.exit_code == 1 and world.began()["stuck"] <= 3 and "no progress" in str(failed.error)
    assert world.attempts(stage).count("failed") == 3
    assert alive(world) == []


def test_work_over_its_time_fails_at_once(world, ray_session):
    stage = away(world, "long", Resources(hours=3 / 3600), seconds=300.0)
    outcome = go(world, plan(stage))
    (failed,) = outcome.failed
    assert outcome.exit_code == 1 and world.began()["long"] == 1 and "longer than 3 s" in str(failed.error)
    assert world.attempts(stage) == ["failed"]


def test_a_limit_is_generous_where_the_grid_gives_none():
    spec = AwaySpec(name="x", log="x")
    assert most_seconds(Stage(spec, cost=10.0)) == 24 * 3600
    assert most_seconds(Stage(spec, cost=36_000.0)) == 20 * 36_000
    assert most_seconds(Stage(spec, cost=36_000.0, resources=Resources(hours=2))) == 7200


def test_rows_that_cannot_be_sent_fail_no_stage_and_are_sent_at_the_end(world, ray_session):
    """The reporter's process dies again and again while the stages report."""
    stages = [world.stage(f"s{number}", seconds=1.0) for number in range(4)]
    stop, killed = threading.Event(), set()

    def kill() -> None:
        while not stop.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since the look
                    if "_ReporterActor" in " ".join(process.cmdline()):
                        process.kill()
                        killed.add(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    timer = threading.Timer(6.0, stop.set)
    timer.start()
    try:
        outcome = go(world, plan(*stages))
    finally:
        stop.set()
        killer.join()
    assert len(killed) > 1
    assert {stage.status for stage in outcome.stages.values()} == {"done"}
    assert (outcome.exit_code == 0) == (outcome.unsent is None)
    assert go(world, plan(*stages)).exit_code == 0
    for stage in stages:
        assert world.steps(stage) == [1, 2, 3]


def test_an_artifact_that_is_gone_at_the_end_is_not_reported_as_there(world, ray_session):
    first, second = world.stage("first"), world.stage("second", seconds=6.0)

    def remove() -> None:
        folder = Path(world.storage, "artifacts", "toystage", first.fingerprint)
        while not (folder / "manifest.json").exists():
            time.sleep(0.1)
        shutil.rmtree(folder)

    thread = threading.Thread(target=remove)
    thread.start()
    outcome = go(world, plan(first, second))
    thread.join()
    assert outcome.exit_code == 1
    assert [(stage.label, stage.status) for stage in outcome.failed] == [("first", "failed")]


def test_lost_nodes_are_no_lives(world):
    """More nodes go, one after the other, than a stage has lives. In a process of its own, which has a cluster of its own."""
    losses = RETRIES + 1
    command = [sys.executable, str(PLANTED / "losing_nodes.py"), str(world.log.parent), str(losses)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-8000:]
    said = json.loads(done.stdout.splitlines()[-1])
    nodes = [line.split()[2] for line in world.log.read_text().splitlines() if line.endswith("begin")]
    assert said["exit"] == 0, said
    assert len(nodes) == losses + 1 and nodes[:-1] == said["taken"] and world.ended()["far"] == 1
