"""What is left after kills and interruptions, and that the same command continues from it."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from drive import fault_plan
from rich.console import Console
from toygraph import World

from cft_ray.artifacts.lease import holders
from cft_ray.execute.run import Outcome, run
from cft_ray.plan.stage import Plan
from cft_ray.storage.root import Storage

DRIVER = Path(__file__).parent.parent / "planted" / "drive.py"
WAIT = 240.0
"""seconds after which a test gives up waiting for something to happen"""


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    return World(tmp_path)


def drive(world: World, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DRIVER), "fault", str(world.log.parent), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(happened: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        if process is not None and process.poll() is not None:
            pytest.fail(f"the driver ended with {process.returncode}: {process.communicate()}")
        time.sleep(0.1)


def go(world: World, planned: Plan) -> Outcome:
    return run(planned, world.storage, console=Console(file=io.StringIO()))


def check_whole(world: World, planned: Plan) -> None:
    """Everything that a run without faults leaves: each artifact made once, each row there once."""
    assert world.ended() == {"quick": 1, "other": 1, "slow": 1, "last": 1}
    for stage in planned.stages.values():
        assert world.steps(stage) == [1, 2, 3]
        assert world.attempts(stage)[-1] == "done" and world.attempts(stage).count("done") == 1
        assert not holders(Storage(world.storage), [stage.fingerprint])


def slow_runs(world: World) -> bool:
    """The slow stage has begun, and the quick ones are behind us with their rows."""
    if not (world.began()["slow"] and world.ended()["quick"] and world.ended()["other"]):
        return False
    return len(list(Path(world.storage, "artifacts", "toystage").glob("*/manifest.json"))) == 2


def test_a_killed_driver_leaves_what_was_finished(world, ray_session):
    driver = drive(world, seconds=300)
    until(lambda: slow_runs(world), driver)
    driver.kill()
    driver.communicate()
    planned = fault_plan(world, 0.1)
    outcome = go(world, planned)
    assert {stage.label: stage.status for stage in outcome.stages.values()} == {
        "quick": "cached",
        "other": "cached",
        "slow": "done",
        "last": "done",
    }
    assert outcome.exit_code == 0 and world.began()["slow"] == 2
    slow = next(stage for stage in planned.stages.values() if stage.label == "slow")
    assert world.attempts(slow) == ["failed", "done"]  # the killed attempt is on record
    check_whole(world, planned)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_cleanly_and_continues(world, number, ray_session):
    driver = drive(world, seconds=300)
    until(lambda: slow_runs(world), driver)
    ours = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    out, error = driver.communicate(timeout=WAIT)
    assert driver.returncode == 130, error
    assert json.loads(out) == {"quick": "done", "other": "done", "slow": "interrupted", "last": "interrupted"}
    assert "Traceback" not in error and "same command continues" in error
    planned = fault_plan(world, 0.1)
    for stage in planned.stages.values():
        assert not holders(Storage(world.storage), [stage.fingerprint])
    _, alive = psutil.wait_procs(ours, timeout=WAIT)
    assert not alive
    assert go(world, planned).exit_code == 0
    check_whole(world, planned)


def test_two_runs_at_once_share_the_work(world):
    drivers = [drive(world, seconds=3), drive(world, seconds=3)]
    for driver in drivers:
        out, error = driver.communicate(timeout=2 * WAIT)
        assert driver.returncode == 0, error
        assert set(json.loads(out).values()) <= {"done", "cached"}
    check_whole(world, fault_plan(world, 3))


@pytest.mark.parametrize("victim", ["ray::ImplicitFunc", "ray::stage"])
def test_a_killed_trial_is_run_again(world, victim, ray_session):
    """The trial's actor, and the process that runs the stage for it."""
    planned = fault_plan(world, 5.0)
    killed: list[int] = []

    def kill() -> None:
        until(lambda: slow_runs(world))
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith(victim[:15]) and " ".join(process.cmdline()).startswith(victim):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = go(world, planned)
    killer.join()
    assert killed and outcome.exit_code == 0
    assert world.began()["slow"] == 2
    check_whole(world, planned)
