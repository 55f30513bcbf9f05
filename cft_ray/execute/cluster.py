"""The Ray cluster that a run uses: a local one of its own, or one that is there already; and what it can hold."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import services, state

from cft_ray.errors import UserError
from cft_ray.execute.capacity import Capacity, cluster_capacity
from cft_ray.execute.environment import SETTINGS, TRAVELS, local_system_config, prepare_local
from cft_ray.machine import cpus as usable_cpus
from cft_ray.machine import prepare_temporary

OBJECT_STORE = 512 * 2**20
"""bytes, on a local cluster: stages hand files, not objects, to each other"""

STARTS = 3
"""times that starting a local node is tried"""
CONNECT_SECONDS = 5.0
"""patience with the port of a cluster before Ray is let at it, which waits for minutes"""
VARIABLE = "RAY_ADDRESS"
START_FAILURES = ("timed out during startup", "dashboard.log", "dashboard.err", "Failed to start a dashboard")
"""how Ray says that its own processes were too slow, its dashboard by the end of its log"""


@contextmanager
def connected(address: str | None, cpus: int | None = None, object_store: int = OBJECT_STORE) -> Iterator[str | None]:
    """Be connected to Ray inside the block; what was started ends with it. An existing connection is used as it is.

    Args:
        address: of a running cluster (``auto``, ``host:port``); None or ``local``: one of its own.
        cpus: logical CPUs of the local one; None: those that this process may use.
        object_store: bytes of the local one's shared memory.

    Yields:
        the address of the dashboard that was started or found; None for an existing connection.

    Raises:
        UserError: the cluster cannot be reached, or a local one does not start.
    """
    if ray.is_initialized():
        yield None
        return
    own = address is None or address == "local"
    context = _start_local(cpus or usable_cpus(), object_store) if own else _connect(address or "")
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    """To a running cluster, once its port answers."""
    if address == "auto":
        address = os.environ.get(VARIABLE) or address  # as Ray itself reads it
    where, fix = address, "check the address, or leave it out for a cluster on this machine"
    if address == os.environ.get(VARIABLE):
        where = f"environment variable {VARIABLE}={address}"
        fix = f"unset {VARIABLE} to run on this machine (or --address local), or name a cluster that is running"
    _look(address, where, fix)
    environment = {name: os.environ[name] for name in (*SETTINGS, *TRAVELS) if name in os.environ}
    try:
        return ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": environment})
    except Exception as error:  # a version that differs, a head that is going down …: Ray has no base class for these
        ray.shutdown()
        raise UserError(f"the Ray cluster cannot be reached: {_last_line(error)}", where=where, fix=fix) from error


def _look(address: str, where: str, fix: str) -> None:
    """Whether something answers at an address, in seconds.

    Raises:
        UserError: the address has not the form of one, or nothing is there.
    """
    if "://" in address:
        what = "this is not the address of a Ray cluster's head"
        raise UserError(what, where=where, fix=f"HOST:PORT (the port is 6379 unless you chose another), or auto; {fix}")
    try:
        found = services.canonicalize_bootstrap_address(address) or ""
    except (ConnectionError, ValueError, OSError) as error:
        raise UserError(f"there is no Ray cluster: {_last_line(error)}", where=where, fix=fix) from error
    host, _, port = found.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise UserError("this is not the address of a Ray cluster: HOST:PORT, or auto", where=where, fix=fix)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        at = "" if found == address else f" at {found}"
        raise UserError(f"no Ray cluster answers{at}: {_last_line(error)}", where=where, fix=fix) from error


def _start_local(cpus: int, object_store: int) -> Any:
    """A node of our own. Ray gives its processes 30 s, whatever the machine is doing besides: so it is tried again."""
    prepare_local()
    if moved := prepare_temporary():
        logging.getLogger(__name__).warning(moved)
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
            slow = any(words in str(error) for words in START_FAILURES)
            if slow and attempt < STARTS:
                continue
            what, fix = f"Ray does not start: {_last_line(error)}", "see `cft-ray doctor`"
            if slow:
                what = f"Ray's processes did not start within 30 s, {STARTS} times"
                fix = "this machine is busy or short of memory: try again when it is not, or give --address of a cluster"
            raise UserError(what, where="local Ray node", fix=fix) from error
    raise AssertionError("unreachable")


def _last_line(error: Exception) -> str:
    """Where Ray says what is wrong."""
    return next(iter(reversed(str(error).strip().splitlines())), type(error).__name__)


def capacity() -> Capacity:
    """What the connected cluster can hold, with the nodes that its autoscaler may still start."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    config = state.state.get_cluster_config()
    groups = [(dict(group.resources), group.max_count) for group in config.node_group_configs] if config else []
    return cluster_capacity(alive, groups)
