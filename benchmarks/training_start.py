"""Seconds that a one-worker training takes beside its steps, from the second of a run on, against the same under Ray Train.

    python benchmarks/training_start.py --trainings 5

`cft-ray run` on an empty storage: one base, then trainings of it that differ in their learning rate alone, one after the
other. From each stage's wall time (table `stages`) the time of its steps (table `steps`) is taken away; what remains is
rows, model, checks before the first step, export and its comparison, and the artifact. The peer is a `TorchTrainer` of one
worker that imports what a training imports and does nothing: what each training would have to pay in addition.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from record import ROOT, record

import cft_ray

GOAL_SECONDS = 3.0
STEPS = 40


def beside_steps(trainings: int) -> list[float]:
    """Seconds beside the steps of each training, in the order of their starts; the first is the base's."""
    with tempfile.TemporaryDirectory(prefix="cft-ray-starts-") as storage:
        entries = [
            f"{{use: LoRA, name: L{number}, training: {{learning_rate: {1e-3 * (1 + number / 10)}}}}}"
            for number in range(trainings)
        ]
        sets = [
            f"storage.uri={storage}",
            "pairs=[{phase1: alpaca, phase2: multialpaca}]",
            f"strategies=[{', '.join(entries)}]",
            "evaluation.limit=8",
            "evaluation.benchmarks=[toy_letters]",
            f"models.mistral-toy.base.train.training.steps={STEPS}",
            f"training.steps={STEPS}",
            f"training.phase2.steps={STEPS}",
            "resources.finetune.cpus=2",  # so that no two share the machine
            "models.mistral-toy.instruct.train.resources.workers=1",
        ]
        command = [str(Path(sys.executable).parent / "cft-ray"), "run", "grids/smoke.yaml"]
        for each in sets:
            command += ["--set", each]
        subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
        results = cft_ray.open(storage)
        steps = results.steps().group_by("fingerprint").agg(pl.col("seconds").sum().alias("steps"))
        done = results.stages().filter((pl.col("kind") == "finetune") & (pl.col("status") == "done"))
        joined = done.join(steps, on="fingerprint").sort("start").collect()
    return (joined["seconds"] - joined["steps"]).to_list()


def seconds_under_ray_train(trainings: int) -> list[float]:
    """Seconds of each of several runs of a `TorchTrainer` whose one worker imports the training's modules and ends."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def work() -> None:
        import cft_ray.training.loop  # noqa: F401

    taken = []
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    try:
        with tempfile.TemporaryDirectory(prefix="cft-ray-starts-") as folder:
            for number in range(trainings):
                begin = time.perf_counter()
                run = RunConfig(name=str(number), storage_path=folder)
                TorchTrainer(work, scaling_config=ScalingConfig(num_workers=1), run_config=run).fit()
                taken.append(time.perf_counter() - begin)
    finally:
        ray.shutdown()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=5, help="of the base, after the first")
    arguments = parser.parse_args()
    ours = beside_steps(arguments.trainings)
    peer = seconds_under_ray_train(arguments.trainings)
    later, start = statistics.median(ours[1:]), statistics.median(peer[1:])
    figures = {
        "seconds_beside_steps_first": round(ours[0], 2),
        "seconds_beside_steps_later": [round(each, 2) for each in ours[1:]],
        "seconds_beside_steps_later_median": round(later, 2),
        "goal_seconds": GOAL_SECONDS,
        "seconds_to_goal": round(later / GOAL_SECONDS, 3),
        "seconds_ray_train_start": [round(each, 2) for each in peer],
        "ratio_to_ray_train_start": round(later / start, 3),
        "steps_each": STEPS,
    }
    print(record("training_start", f"python benchmarks/training_start.py --trainings {arguments.trainings}", figures), figures)


if __name__ == "__main__":
    main()
