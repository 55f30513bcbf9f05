"""What the runner adds to a stage: plans of trivial stages, beside bare Tune trials of the same number.

    python benchmarks/orchestration.py --sizes 200 500 1000 2000

The peer is Ray Tune itself with as many trivial trials, in the same Ray, in the same process: what is above its cost is
ours (leases, artifacts, tables, order). Reported are seconds a stage over what the bare trials took, the ratio of both,
and whether the cost of one more stage grows with the size of the plan.
"""

import argparse
import io
import os
import random
import sys
import tempfile
import time
from pathlib import Path

PLANTED = Path(__file__).resolve().parent.parent / "tests" / "planted"
sys.path.insert(0, str(PLANTED))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PLANTED), os.environ.get("PYTHONPATH"))))

from record import record  # noqa: E402
from rich.console import Console  # noqa: E402
from toygraph import World, plan  # noqa: E402

from cft_ray.execute.cluster import connected  # noqa: E402
from cft_ray.execute.run import run  # noqa: E402
from cft_ray.plan.stage import Plan  # noqa: E402


def random_plan(world: World, size: int) -> Plan:
    """Families of fifty stages, as a model's cells are: each has up to three inputs among those before it in its family."""
    rng = random.Random(size)
    stages = []
    for number in range(size):
        before = stages[number - number % 50 :]
        stages.append(world.stage(f"{size}-{number}", rng.sample(before, min(len(before), rng.randrange(4))), rows=1))
    return plan(*stages, grid=f"random-{size}")


def seconds_of_bare_tune(size: int) -> float:
    """Seconds for ``size`` trials that do nothing, two at a time as the runner has them."""
    from ray import tune

    def nothing(config: dict[str, int]) -> None:
        tune.report({"done": config["number"]})

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        tune.run(
            tune.with_resources(nothing, {"cpu": 1}),
            config={"number": tune.grid_search(list(range(size)))},
            reuse_actors=True,
            storage_path=folder,
            verbose=0,
        )
        return time.perf_counter() - start


def seconds_of_plan(size: int) -> float:
    """Seconds for a plan of ``size`` trivial stages, Ray's start left out."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        planned = random_plan(world, size)
        start = time.perf_counter()
        outcome = run(planned, world.storage, console=Console(file=io.StringIO()))
        taken = time.perf_counter() - start
        assert outcome.exit_code == 0 and sum(world.ended().values()) == size
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 500, 1000, 2000])
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with connected(None, cpus=2, object_store=200 * 2**20):
        seconds_of_plan(4)  # the worker processes start and import
        seconds_of_bare_tune(4)
        for size in arguments.sizes:
            ours, bare = seconds_of_plan(size), seconds_of_bare_tune(size)
            figures |= {
                f"seconds_per_stage_{size}": ours / size,
                f"bare_tune_seconds_per_trial_{size}": bare / size,
                f"added_seconds_per_stage_{size}": (ours - bare) / size,
                f"ratio_to_bare_tune_{size}": ours / bare,
            }
            print(f"{size}: {ours / size:.3f} s a stage, bare Tune {bare / size:.3f} s a trial, ratio {ours / bare:.2f}")
    first, last = arguments.sizes[0], arguments.sizes[-1]
    if first != last:
        figures["growth_of_seconds_per_stage"] = figures[f"seconds_per_stage_{last}"] / figures[f"seconds_per_stage_{first}"]
    record("orchestration", " ".join(["python", "benchmarks/orchestration.py", *sys.argv[1:]]), figures)


if __name__ == "__main__":
    main()
