"""A driver process: runs a plan of the fault tests, and exits as the command would.

python drive.py fault|one|grid FOLDER SECONDS [STORAGE]
"""

import json
import sys
from pathlib import Path

from toygraph import World, plan

from cft_ray.execute.cluster import connected
from cft_ray.execute.run import run
from cft_ray.plan.stage import Plan


def fault_plan(world: World, seconds: float) -> Plan:
    """Two quick stages, a slow one behind the first, and one behind that."""
    quick, other = world.stage("quick"), world.stage("other")
    slow = world.stage("slow", [quick], seconds=seconds)
    last = world.stage("last", [slow, other])
    return plan(quick, other, slow, last)


def one_plan(world: World, seconds: float) -> Plan:
    """One stage."""
    return plan(world.stage("one", seconds=seconds))


def grid_plan(world: World, seconds: float) -> Plan:
    """A grid in little: a base, two first phases, four second phases that write checkpoints, and what measures each."""
    base = world.stage("base", seconds=seconds)
    firsts = [world.stage(f"first{n}", [base], seconds=seconds, checkpoints=2) for n in range(2)]
    seconds_ = [world.stage(f"second{n}", [firsts[n % 2]], seconds=seconds, checkpoints=2, rows=4) for n in range(4)]
    asked = [world.stage(f"asked{n}", [trained], seconds=seconds / 2) for n, trained in enumerate((*firsts, *seconds_))]
    return plan(base, *firsts, *seconds_, *asked)


PLANS = {"fault": fault_plan, "one": one_plan, "grid": grid_plan}


def drive(planned: Plan, storage: str) -> int:
    """Run it, and print how each stage ended."""
    outcome = run(planned, storage, cpus=2, object_store=200 * 2**20)
    print(json.dumps({stage.label: stage.status for stage in outcome.stages.values()}), flush=True)
    return outcome.exit_code


if __name__ == "__main__":
    kind, folder, seconds = PLANS[sys.argv[1]], sys.argv[2], float(sys.argv[3])
    if folder == "-":
        with connected(None, cpus=2, object_store=200 * 2**20):
            for line in sys.stdin:
                world = World(Path(line.split()[0]), line.split()[1])
                drive(kind(world, seconds), world.storage)
    else:
        world = World(Path(folder), *sys.argv[4:])
        sys.exit(drive(kind(world, seconds), world.storage))
