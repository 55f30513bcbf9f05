"""The Ray cluster that a run uses: a local one of its own, or one that is there already; and what it can hold."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import state

from cft_ray.errors import UserError
from cft_ray.execute.capacity import Capacity, cluster_capacity
from cft_ray.execute.environment import SETTINGS, local_system_config, prepare_local

OBJECT_STORE = 512 * 2**20
"""bytes, on a local cluster: stages hand files, not objects, to each other"""

STARTS = 3
"""times that starting a local node is tried"""
START_FAILURE = "timed out during startup"
"""how Ray says that its own processes were too slow"""


@contextmanager
def connected(address: str | None, cpus: int | None = None, object_store: int = OBJECT_STORE) -> Iterator[str | None]:
    """Be connected to Ray inside the block; what was started ends with it. An existing connection is used as it is.

    Args:
        address: of a running cluster (``auto``, ``host:port``); None: a local one.
        cpus: logical CPUs of the local one; None: all cores.
        object_store: bytes of the local one's shared memory.

    Yields:
        the address of the dashboard that was started or found; None for an existing connection.

    Raises:
        UserError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield None
        return
    try:
        if address is None:
            context = _start_local(cpus or os.cpu_count() or 1, object_store)
        else:
            environment = {name: os.environ[name] for name in SETTINGS}
            context = ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": environment})
    except ConnectionError as error:
        what = f"the Ray cluster cannot be reached: {str(error).splitlines()[0]}"
        raise UserError(what, where=address, fix="check the address, or leave it out for a local one") from error
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None
    finally:
        ray.shutdown()


def _start_local(cpus: int, object_store: int) -> Any:
    """A node of our own. Ray gives its processes 30 s, whatever the machine is doing besides: so it is tried again."""
    prepare_local()
    for attempt in range(1, STARTS + 1):
        try:
            return ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=object_store,
                include_dashboard=True,  # the state API too: Train's cleaner needs it after a driver has died
                log_to_driver=False,
                logging_level=logging.ERROR,
                _system_config=local_system_config(cpus),
            )
        except Exception as error:  # Ray raises just this
            ray.shutdown()
            if START_FAILURE not in str(error):
                raise
            if attempt == STARTS:
                raise UserError(
                    f"Ray's processes did not start within 30 s, {STARTS} times",
                    where="local Ray node",
                    fix="this machine is busy or short of memory: try again when it is not, or give --address of a cluster",
                ) from error
    raise AssertionError("unreachable")


def capacity() -> Capacity:
    """What the connected cluster can hold, with the nodes that its autoscaler may still start."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    config = state.state.get_cluster_config()
    groups = [(dict(group.resources), group.max_count) for group in config.node_group_configs] if config else []
    return cluster_capacity(alive, groups)
