"""Packing bundles onto nodes."""

import itertools
import random

from cft_ray.execute.capacity import Capacity, Nodes, cluster_capacity
from cft_ray.plan.stage import Resources


def test_bundles_must_fit_on_single_nodes():
    two_halves = Capacity((Nodes(cpus=1, count=2),))
    assert two_halves.holds([Resources(workers=2, cpus=1)])
    assert not two_halves.holds([Resources(workers=1, cpus=2)])
    assert "largest node has 1 CPU" in (two_halves.shortage(Resources(cpus=2)) or "")
    assert "whole cluster has 2 CPU" in (two_halves.shortage(Resources(workers=3, cpus=1)) or "")
    assert two_halves.shortage(Resources(workers=2, cpus=1)) is None


def test_fractions_add_up():
    assert Capacity((Nodes(cpus=1),)).holds([Resources(cpus=0.1)] * 10)
    assert not Capacity((Nodes(cpus=1),)).holds([Resources(cpus=0.1)] * 11)
    assert Capacity((Nodes(cpus=4, gpus=1),)).holds([Resources(cpus=1, gpus=0.5)] * 2)


def test_gpu_work_is_placed_before_work_that_could_take_its_cpus():
    cluster = Capacity((Nodes(cpus=4, gpus=4), Nodes(cpus=8)))
    assert cluster.holds([Resources(workers=8, cpus=1), Resources(workers=4, cpus=1, gpus=1)])


def test_what_is_held_really_fits():
    """Against exhaustive search: first-fit never claims what cannot be; unit bundles are decided exactly."""
    rng = random.Random(1)
    for _ in range(200):
        sizes = [rng.randint(1, 4) for _ in range(3)]
        cluster = Capacity(tuple(Nodes(cpus=size) for size in sizes))
        needs = [Resources(workers=rng.randint(1, 2), cpus=rng.randint(1, 3)) for _ in range(rng.randint(1, 3))]
        bundles = [need.cpus for need in needs for _ in range(need.workers)]
        possible = any(
            all(sum(b for b, at in zip(bundles, places, strict=True) if at == node) <= sizes[node] for node in range(3))
            for places in itertools.product(range(3), repeat=len(bundles))
        )
        if cluster.holds(needs):
            assert possible
        ones = [Resources(workers=need.workers, cpus=1) for need in needs]
        assert cluster.holds(ones) == (sum(need.workers for need in ones) <= sum(sizes))


def test_the_autoscaler_counts():
    head, worker = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}
    grown = cluster_capacity([head], [(head, 1), (worker, 4)])
    assert grown.total == {"CPU": 34.0, "GPU": 4.0}
    assert cluster_capacity([head, worker], [(head, 1), (worker, 4)]).total == grown.total
    assert cluster_capacity([head], []).total == {"CPU": 2.0, "GPU": 0.0}
    assert cluster_capacity([head], [(worker, -1)]).holds([Resources(workers=1000, cpus=8, gpus=1)])


def test_partly_filled_nodes_among_several_alike():
    """Three nodes of two CPUs: three single workers may share two of them, three more fill all, a seventh has no place."""
    capacity = Capacity((Nodes(cpus=2, count=3),))
    three = Resources(workers=3, cpus=1)
    assert capacity.holds([three]) and capacity.holds([three, three])
    assert not capacity.holds([three, three, Resources(cpus=1)])
    # What is left of a node is its own: two nodes of three CPUs, four workers of one, then one of two CPUs, not of three.
    pair = Capacity((Nodes(cpus=3, count=2),))
    assert pair.holds([Resources(cpus=2), Resources(workers=4, cpus=1)])
    assert not pair.holds([Resources(cpus=2), Resources(workers=5, cpus=1)])
    assert pair.holds([Resources(workers=2, cpus=2), Resources(workers=2, cpus=1)])
    assert not pair.holds([Resources(workers=3, cpus=2)])


def test_what_takes_no_cpu_or_no_gpu_is_bounded_by_the_other_alone():
    both = Capacity((Nodes(cpus=4, gpus=2, count=2),))
    assert both.holds([Resources(workers=4, cpus=0, gpus=1)]) and not both.holds([Resources(workers=5, cpus=0, gpus=1)])
    assert both.holds([Resources(workers=8, cpus=1)]) and not both.holds([Resources(workers=9, cpus=1)])
    assert both.holds([Resources(workers=4, cpus=0, gpus=1), Resources(workers=8, cpus=1)])


def test_nodes_that_may_not_be_started_do_not_count():
    head, worker = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}
    assert cluster_capacity([head], [(worker, 0)]).total == {"CPU": 2.0, "GPU": 0.0}
    assert cluster_capacity([head], [(worker, 1), (worker, 3)]).total == {"CPU": 26.0, "GPU": 3.0}
    assert cluster_capacity([worker] * 5, [(worker, 3)]).total == {"CPU": 40.0, "GPU": 5.0}, "there are more than it would start"
    assert cluster_capacity([], [(worker, -1)]).total == {"CPU": 80_000.0, "GPU": 10_000.0}


def test_what_is_short_in_words():
    nodes = Capacity((Nodes(cpus=8, gpus=1, count=2), Nodes(cpus=64)))
    assert nodes.shortage(Resources(cpus=8, gpus=1)) is None and nodes.shortage(Resources(cpus=64)) is None
    said = nodes.shortage(Resources(workers=3, cpus=2, gpus=2))
    assert said == "it asks for 3 × (2 CPU, 2 GPU), and the largest node has 8 CPU and 1 GPU"
    said = nodes.shortage(Resources(workers=3, cpus=1, gpus=1))
    assert said == "it asks for 3 × (1 CPU, 1 GPU), and the whole cluster has 80 CPU and 2 GPU, with what it can scale up to"
    said = nodes.shortage(Resources(workers=1, cpus=9, gpus=1))
    assert said == "it asks for 1 × (9 CPU, 1 GPU), and the largest node has 8 CPU and 1 GPU"
    assert Capacity(()).shortage(Resources()) == "it asks for 1 × (1 CPU), and the largest node has 0 CPU and 0 GPU"


def test_one_machine_without_gpus():
    assert Capacity((Nodes(2),)).one_without_gpus
    for nodes in ((), (Nodes(2, 1),), (Nodes(2), Nodes(2)), (Nodes(2, count=3),), (Nodes(2, count=0),)):
        assert not Capacity(nodes).one_without_gpus, nodes
