"""A driver process of its own: runs one pausable stage in the storage given, and says how it ended."""

import json
import sys
from pathlib import Path

from pausable import PausableSpec
from toygraph import plan

from cft_ray.execute.run import run
from cft_ray.plan.stage import Plan, Resources, Stage


def pausable_plan(log: Path, seconds: float) -> Plan:
    """One stage."""
    spec = PausableSpec(name="one", seconds=seconds, log=str(log))
    return plan(Stage(spec, {}, label="one", resources=Resources(cpus=1)))


if __name__ == "__main__":
    outcome = run(pausable_plan(Path(sys.argv[2]), float(sys.argv[3])), sys.argv[1], cpus=2, object_store=200 * 2**20)
    print(json.dumps({stage.label: stage.status for stage in outcome.stages.values()}))
    sys.exit(outcome.exit_code)
