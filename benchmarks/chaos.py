"""Random deaths: grids whose drivers, raylets, workers and actors are killed by SIGKILL, and what is left in the end.

    python benchmarks/chaos.py --light 50 --real 10

A run starts a grid's driver, kills processes of its tree at times and by choices that its seed draws, starts the same command
again whenever the driver has ended, and looks at the end: every artifact whole, every row there once, all numbers those of the
run that nobody disturbed. Runs are on a folder and on an S3 double that answers 503 for a while now and then. Reported are the
kills, what the undisturbed outcome differs in (nothing, or the exit code is 1), and the work that a kill costs: stages begun
again, and seconds. What a seed has shown is kept in the report, and only the rest is run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
PLANTED = ROOT / "tests" / "planted"
sys.path.insert(0, str(PLANTED))

from drive import grid_plan  # noqa: E402
from faults import storm  # noqa: E402
from minigrid import GRID  # noqa: E402
from outcome import attempts, differences, light, real  # noqa: E402
from record import REPORTS, commit, record  # noqa: E402
from s3double import Asked, S3Double, running  # noqa: E402
from toygraph import World  # noqa: E402

from cft_ray.grid.schema import load_grid  # noqa: E402
from cft_ray.plan.build import build  # noqa: E402
from cft_ray.plan.stage import Stage  # noqa: E402

ACTORS = ("ray::_ReporterActor", "ray::_BoardActor", "ray::ImplicitFunc", "ray::Host")
STARTS = 15
"""times that the command is started before a run is given up"""
SOON_SECONDS, END_SECONDS = 10.0, 120.0
"""in which the processes of a driver that has ended mostly end too; after which they are killed"""
SECONDS = 0.3
"""work of a light stage"""
STORM_SECONDS, STORM_WORK = 60.0, 8.0
"""of a storm, and of a light stage in it: the grid takes about as long as the storm"""
REAL: dict[str, Any] = {name: value for name, value in GRID.items() if name not in ("replay", "loggers")} | {
    "name": "chaos",
    "strategies": ["none"],
    "training": {"learning_rate": 1e-3, "steps": 10, "batch_size": 8, "precision": "fp32", "max_length": 128},
    "evaluation": {"limit": 10, "evaluate_base": False, "benchmarks": ["toy_letters"]},
}


@dataclass(frozen=True)
class Grid:
    """A grid in a storage of its own: how its driver is started, and what it leaves."""

    command: list[str]
    stages: list[Stage]
    uri: str
    outcome: Callable[[str, list[Stage]], dict[str, Any]]


def grid(kind: str, folder: Path, uri: str, seconds: float = SECONDS) -> Grid:
    """A grid, of `light` stages that take some seconds each, or a `real` one."""
    if kind == "light":
        stages = list(grid_plan(World(folder, uri), seconds).stages.values())
        return Grid([sys.executable, str(PLANTED / "drive.py"), "grid", str(folder), str(seconds), uri], stages, uri, light)
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(REAL | {"storage": {"uri": uri}}, sort_keys=False))
    stages = list(build(load_grid(path)).stages.values())
    return Grid([str(Path(sys.executable).parent / "cft-ray"), "run", str(path)], stages, uri, real)


def sort_of(process: psutil.Process, driver: int) -> str | None:
    """What a process of a driver's tree is; None: nothing that is killed here."""
    if process.pid == driver:
        return "driver"
    command = " ".join(process.cmdline())
    if command.split(" ")[0].endswith("/raylet"):
        return "raylet"
    if command.startswith(ACTORS):
        return "actor"
    return "worker" if command.startswith("ray::") else None


def tree(driver: int) -> dict[str, list[psutil.Process]]:
    """The processes of a driver by sort, itself among them."""
    found: dict[str, list[psutil.Process]] = {}
    try:
        root = psutil.Process(driver)
        everyone = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in everyone:
        try:
            sort = sort_of(process, driver)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if sort:
            found.setdefault(sort, []).append(process)
    return found


def ended(processes: list[psutil.Process]) -> list[dict[str, Any]]:
    """Wait until the processes of a driver that has ended have ended too. Returns those that took long, and kills what stays."""
    over = time.monotonic()
    _, slow = psutil.wait_procs(processes, timeout=SOON_SECONDS)
    names: dict[int, str] = {}
    for process in slow:
        with suppress(psutil.NoSuchProcess):
            names[process.pid] = " ".join(process.cmdline())[:80] or process.name()
    found: list[dict[str, Any]] = []

    def note(process: psutil.Process) -> None:
        if process.pid in names:
            found.append({"what": names[process.pid], "seconds": time.monotonic() - over, "killed": False})

    _, alive = psutil.wait_procs(slow, timeout=END_SECONDS - SOON_SECONDS, callback=note)
    for process in alive:  # each of them seen below our own driver; the handle knows a number that has another owner now
        with suppress(psutil.NoSuchProcess):
            found.append({"what": names.get(process.pid), "seconds": END_SECONDS, "killed": True, "state": process.status()})
            process.kill()
    return found


def disturbed(run: Grid, folder: Path, chance: random.Random | None, most: int, pause: float) -> dict[str, Any]:
    """Run a grid to its end.

    Args:
        run: what to run.
        folder: of its logs.
        chance: draws the kills; None: nothing is killed.
        most: kills.
        pause: seconds between two kills, at most.
    """
    kills: Counter[str] = Counter()
    left = chance.randint(1, most) if chance else 0
    begun, starts = time.monotonic(), 0
    survivors: list[dict[str, Any]] = []
    environment = os.environ | {"CFT_RAY_CACHE": str(folder / "cache")}
    while True:
        starts += 1
        if starts > STARTS:
            return {"problem": f"not at its end after {STARTS} starts", "kills": dict(kills), "starts": starts}
        with (folder / f"log-{starts}").open("w") as log:
            driver = subprocess.Popen(run.command, stdout=log, stderr=log, env=environment, cwd=folder)
        ours: dict[int, psutil.Process] = {}
        due = time.monotonic() + chance.uniform(1, pause) if chance else 0.0
        early = chance is not None and chance.random() < 0.2  # while Ray still starts
        while driver.poll() is None:
            found = tree(driver.pid)
            ours |= {process.pid: process for processes in found.values() for process in processes}
            if chance and left and time.monotonic() >= due and found and (early or "actor" in found):
                sort = chance.choice(sorted(found))
                try:
                    os.kill(chance.choice(sorted(found[sort], key=lambda process: process.pid)).pid, signal.SIGKILL)
                    kills[sort] += 1
                    left -= 1
                except ProcessLookupError:
                    pass
                due = time.monotonic() + chance.uniform(1, pause)
            time.sleep(0.25)
        ours.pop(driver.pid, None)
        survivors += ended(list(ours.values()))
        if driver.returncode == 0:
            return {"kills": dict(kills), "starts": starts, "seconds": time.monotonic() - begun, "survivors": survivors}


def once(kind: str, where: str, seed: int | None, double: S3Double, wanted: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
    """One run of a grid. Returns what is reported of it, and what it left."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    uri = str(folder / "storage") if where == "folder" else f"s3://{double.bucket()}/run"
    chance = None if seed is None else random.Random(f"{kind} {where} {seed}")
    try:
        run = grid(kind, folder, uri)
        stuttering = [storm(5.0, 0.3, seed)] if seed is not None and where == "bucket" else []
        with double.behaving(*stuttering):
            said = disturbed(run, folder, chance, most=4, pause=6.0 if kind == "light" else 25.0)
        left, logs = None, sorted(folder.glob("log-*"))
        if "problem" not in said:
            try:
                left = run.outcome(uri, run.stages)
                said |= {"different": [] if wanted is None else differences(left, wanted)}
                said |= {"attempts": attempts(uri), "stages": len(run.stages)}
                if kind == "light":
                    said["stages_begun"] = sum(World(folder, uri).began().values())
            except Exception as error:  # noqa: BLE001 - whatever is not as it should be is what is looked for
                said["problem"] = f"{type(error).__name__}: {error}"[:2000]
        if said.get("problem") or said.get("different"):
            said["log"] = logs[-1].read_text()[-4000:]
        return {"kind": kind, "where": where, "seed": seed, "commit": commit(), **said}, left
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stormy(double: S3Double, wanted: dict[str, Any]) -> dict[str, Any]:
    """A light grid on the double, which refuses half of all requests with 503 for a minute."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        run = grid("light", folder, f"s3://{double.bucket()}/run", STORM_WORK)
        refused, rule = [0], storm(STORM_SECONDS, 0.5, 0)

        def counted(asked: Asked) -> Any:
            action = rule(asked)
            refused[0] += action is not None
            return action

        double.asked.clear()
        with double.behaving(counted):
            said = disturbed(run, folder, None, most=0, pause=0)
        figures = {"seconds": said["seconds"], "requests": len(double.asked), "refused": refused[0], "starts": said["starts"]}
        return figures | {"different": differences(run.outcome(run.uri, run.stages), wanted)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs of one kind on one sort of storage say together."""
    quiet = [run for run in runs if run["seed"] is None]
    killed = [run for run in runs if run["seed"] is not None]
    whole = [run for run in killed if "problem" not in run and not run["different"]]
    kills: Counter[str] = Counter()
    for run in killed:
        kills.update(run["kills"])
    figures: dict[str, Any] = {"runs": len(killed), "equal_to_undisturbed": len(whole), "kills": dict(kills)}
    total = sum(sum(run["kills"].values()) for run in whole)
    if total and quiet:
        seconds = sum(run["seconds"] - quiet[-1]["seconds"] for run in whole)
        again = sum(run.get("stages_begun", run["attempts"]) - run["stages"] for run in whole)
        figures |= {"undisturbed_seconds": quiet[-1]["seconds"], "seconds_per_kill": seconds / total}
        figures["stages_begun_again_per_kill"] = again / total
    return figures


@contextmanager
def prepared() -> Iterator[S3Double]:
    """An S3 double, and an environment in which children use it and find the planted modules."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), str(PLANTED), os.environ.get("PYTHONPATH"))))
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.update(quiet | {"VLLM_CPU_KVCACHE_SPACE": "1", "TOKENIZERS_PARALLELISM": "false"})
    with running() as double:
        os.environ.update(double.environment())
        yield double


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--light", type=int, default=2, help="runs of a grid of light stages on each storage")
    parser.add_argument("--real", type=int, default=0, help="runs of a real mini grid on each storage")
    parser.add_argument("--where", nargs="+", choices=["folder", "bucket"], default=["folder", "bucket"])
    parser.add_argument("--storm", action="store_true", help="a light grid through a minute of 503 as well")
    parser.add_argument("--afresh", action="store_true", help="forget what earlier seeds have shown")
    arguments = parser.parse_args()
    kept = REPORTS / "chaos.json"
    known: dict[str, Any] = json.loads(kept.read_text())["figures"] if kept.exists() and not arguments.afresh else {}
    runs, storms = known.get("each", []), known.get("storm")
    command = " ".join(["python", "benchmarks/chaos.py", *sys.argv[1:]])

    def keep() -> None:
        groups = sorted({(run["kind"], run["where"]) for run in runs})
        together = {f"{kind}_{place}": summary([run for run in runs if (run["kind"], run["where"]) == (kind, place)])
                    for kind, place in groups}  # fmt: skip
        record("chaos", command, together | ({"storm": storms} if storms else {}) | {"each": runs})

    with prepared() as double:
        for kind, count in (("light", arguments.light), ("real", arguments.real)):
            if not count:
                continue
            quiet: dict[str, Any] = {}
            for where in sorted(arguments.where, reverse=True):  # a folder first: its outcome is what all must be equal to
                said, quiet[where] = once(kind, where, None, double, next(iter(quiet.values()), None))
                assert "problem" not in said and not said["different"], said
                runs = [run for run in runs if (run["kind"], run["where"], run["seed"]) != (kind, where, None)] + [said]
            wanted = next(iter(quiet.values()))
            if kind == "light" and arguments.storm:
                storms = stormy(double, wanted)
                print(json.dumps({"storm": storms}), flush=True)
                keep()
            there = {(run["where"], run["seed"]) for run in runs if run["kind"] == kind}
            for seed in range(count):
                for where in arguments.where:
                    if (where, seed) not in there:
                        said, _ = once(kind, where, seed, double, wanted)
                        runs.append(said)
                        print(json.dumps({name: value for name, value in said.items() if name != "log"}), flush=True)
                        keep()
            keep()
    sys.exit(any(run.get("problem") or run["different"] for run in runs) or bool(storms and storms["different"]))


if __name__ == "__main__":
    main()
