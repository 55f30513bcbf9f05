"""A driver process: runs the fault tests' plan in the folder given, and exits as the command would."""

import json
import sys
from pathlib import Path

from toygraph import World, plan

from cft_ray.execute.run import run
from cft_ray.plan.stage import Plan


def fault_plan(world: World, seconds: float) -> Plan:
    """Two quick stages, a slow one behind the first, and one behind that."""
    quick, other = world.stage("quick"), world.stage("other")
    slow = world.stage("slow", [quick], seconds=seconds)
    last = world.stage("last", [slow, other])
    return plan(quick, other, slow, last)


if __name__ == "__main__":
    world = World(Path(sys.argv[1]))
    outcome = run(fault_plan(world, float(sys.argv[2])), world.storage, cpus=2, object_store=200 * 2**20)
    print(json.dumps({stage.label: stage.status for stage in outcome.stages.values()}))
    sys.exit(outcome.exit_code)
