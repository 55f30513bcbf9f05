"""What a cluster can hold, in bundles on nodes. Pure.

A stage asks for ``workers`` bundles that must each fit on one node. A set of stages fits if their bundles can be
packed onto the nodes (first-fit decreasing, biggest GPU share first), counting nodes that the autoscaler may still start.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cft_ray.plan.stage import Resources

TOLERANCE = 1e-6
"""Ray counts resources in steps of 1e-4; sums of floats differ far below that"""


@dataclass(frozen=True)
class Nodes:
    """``count`` nodes alike, each with this many logical CPUs and GPUs."""

    cpus: float
    gpus: float = 0.0
    count: int = 1


@dataclass(frozen=True)
class Capacity:
    """All nodes that there are or can be."""

    nodes: tuple[Nodes, ...]

    @property
    def total(self) -> dict[str, float]:
        """``{"CPU": …, "GPU": …}`` over all nodes."""
        return {
            "CPU": sum(node.cpus * node.count for node in self.nodes),
            "GPU": sum(node.gpus * node.count for node in self.nodes),
        }

    @property
    def one_without_gpus(self) -> bool:
        """Whether this is one machine without a GPU."""
        return sum(node.count for node in self.nodes) == 1 and self.total["GPU"] == 0

    def holds(self, stages: Iterable[Resources]) -> bool:
        """Whether the bundles of all these stages can be on the nodes at the same time."""
        bundles = [(need.gpus, need.cpus, need.workers) for need in stages]
        free = [[node.gpus, node.cpus, node.count] for node in self.nodes if node.count > 0]
        for gpus, cpus, workers in sorted(bundles, reverse=True):
            left = workers
            for slot in list(free):
                if left == 0:
                    break
                a_node = _times(slot[0], gpus, slot[1], cpus, left)
                left -= _place(free, slot, gpus, cpus, a_node, left)
            if left > 0:
                return False
        return True

    def shortage(self, need: Resources) -> str | None:
        """In words what is short for one stage alone on the whole cluster; None if it fits."""
        if self.holds([need]):
            return None
        wanted = f"{need.workers} × ({need.cpus:g} CPU" + (f", {need.gpus:g} GPU)" if need.gpus else ")")
        largest = max(self.nodes, key=lambda node: (node.gpus, node.cpus), default=Nodes(0))
        if not any(node.cpus + TOLERANCE >= need.cpus and node.gpus + TOLERANCE >= need.gpus for node in self.nodes):
            return f"it asks for {wanted}, and the largest node has {largest.cpus:g} CPU and {largest.gpus:g} GPU"
        total = self.total
        have = f"{total['CPU']:g} CPU and {total['GPU']:g} GPU"
        return f"it asks for {wanted}, and the whole cluster has {have}, with what it can scale up to"


def _times(free_gpus: float, gpus: float, free_cpus: float, cpus: float, most: int) -> int:
    """How many bundles fit into what a node has free."""
    fits = most
    if gpus > 0:
        fits = min(fits, math.floor(free_gpus / gpus + TOLERANCE))
    if cpus > 0:
        fits = min(fits, math.floor(free_cpus / cpus + TOLERANCE))
    return fits


def _place(free: list[list[float]], slot: list[float], gpus: float, cpus: float, a_node: int, wanted: int) -> int:
    """Put up to ``wanted`` bundles on the alike nodes of ``slot``, splitting it; returns how many were placed."""
    if a_node <= 0:
        return 0
    full = min(int(slot[2]), wanted // a_node)
    if full:
        slot[2] -= full
        free.append([slot[0] - a_node * gpus, slot[1] - a_node * cpus, full])
    placed = full * a_node
    rest = wanted - placed
    if 0 < rest < a_node and slot[2] > 0:
        slot[2] -= 1
        free.append([slot[0] - rest * gpus, slot[1] - rest * cpus, 1])
        placed += rest
    if slot[2] <= 0:
        free.remove(slot)
    return placed


def cluster_capacity(alive: Iterable[Mapping[str, float]], groups: Iterable[tuple[Mapping[str, float], int]]) -> Capacity:
    """Capacity of a Ray cluster.

    Args:
        alive: Ray resources of each live node.
        groups: per node group of the autoscaler its nodes' resources and the most nodes of it (-1: without limit); empty
            where there is no autoscaler.

    Live nodes that look like a group's count as that group's.
    """
    shapes: dict[tuple[float, float], int] = {}
    for resources in alive:
        shape = (resources.get("CPU", 0.0), resources.get("GPU", 0.0))
        shapes[shape] = shapes.get(shape, 0) + 1
    for resources, most in groups:
        shape = (resources.get("CPU", 0.0), resources.get("GPU", 0.0))
        shapes[shape] = max(shapes.get(shape, 0), 10_000 if most < 0 else most)
    return Capacity(tuple(Nodes(cpus, gpus, count) for (cpus, gpus), count in shapes.items()))
