"""A driver on a cluster of its own, from which the node that works is taken away, time and again.

python losing_nodes.py FOLDER LOSSES
"""

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import ray
from awaystage import AwaySpec
from ray.cluster_utils import Cluster
from toygraph import World, plan

from cft_ray.execute.run import run
from cft_ray.plan.stage import Resources, Stage

STORE = 80 * 2**20
SOON: dict[str, int] = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
"""that a lost node is known for one in seconds; by Ray's own numbers it takes about twenty"""


def lose(world: World, losses: int) -> dict[str, object]:
    """Run one stage whose node goes each time that it has begun. Returns how it ended, and the nodes that were taken."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE, "_system_config": SOON})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        # All at once, and here: Ray starts none outside of the main thread.
        nodes = [cluster.add_node(wait=False, num_cpus=1, object_store_memory=STORE) for _ in range(losses + 1)]
        cluster.wait_for_nodes(timeout=120)
        by_name = {node.node_id: node for node in nodes}
        stage = Stage(AwaySpec(name="far", log=str(world.log), seconds=5.0), {}, label="far", resources=Resources())
        taken: list[str] = []

        def take_away() -> None:
            for loss in range(losses):
                while world.began()["far"] <= loss:
                    time.sleep(0.1)
                taken.append(world.log.read_text().splitlines()[-1].split()[2])
                cluster.remove_node(by_name[taken[-1]], allow_graceful=False)

        def taking() -> None:
            try:
                take_away()
            except BaseException:  # noqa: BLE001 - whatever it is, it ends the test
                traceback.print_exc()
                os._exit(3)  # else the run would wait for what never comes

        threading.Thread(target=taking, daemon=True).start()
        outcome = run(plan(stage), world.storage)
        return {"exit": outcome.exit_code, "stages": [vars(one) for one in outcome.stages.values()], "taken": taken}
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    print(json.dumps(lose(World(Path(sys.argv[1])), int(sys.argv[2]))))
