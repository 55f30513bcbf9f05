"""A driver on a cluster of its own, from which the node that works is taken away, time and again.

python losing_nodes.py FOLDER LOSSES
"""

import json
import sys
import threading
import time
from pathlib import Path

import ray
from awaystage import AwaySpec
from ray.cluster_utils import Cluster
from toygraph import World, plan

from cft_ray.execute.run import run
from cft_ray.plan.stage import Resources, Stage

STORE = 80 * 2**20


def lose(world: World, losses: int) -> dict[str, object]:
    """Run one stage whose node goes each time that it has begun. Returns how it ended, and the nodes that were taken."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
        cluster.wait_for_nodes()
        stage = Stage(AwaySpec(name="far", log=str(world.log), seconds=6.0), {}, label="far", resources=Resources())
        taken: list[str] = []

        def take_away() -> None:
            nonlocal node
            for loss in range(losses):
                while world.began()["far"] <= loss:
                    time.sleep(0.1)
                taken.append(node.node_id)
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=1, object_store_memory=STORE)

        thread = threading.Thread(target=take_away, daemon=True)
        thread.start()
        outcome = run(plan(stage), world.storage)
        return {"exit": outcome.exit_code, "stages": [vars(one) for one in outcome.stages.values()], "taken": taken}
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    print(json.dumps(lose(World(Path(sys.argv[1])), int(sys.argv[2]))))
