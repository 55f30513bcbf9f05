"""Steps a second of a one-worker training: plain autograd, against DeepSpeed ZeRO-3 at one worker, which it replaced.

    python benchmarks/whole_steps.py --rounds 3

The smoke grid's model and Phase 1 (0.66M parameters, batches of 32 short rows, fp32), rows and order alike, each contender in
a process of its own with the same threads; contenders in turn, medians compared. The losses of all steps are compared too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import ROOT, record

WARM_UP_STEPS = 5


def steps(contender: str, folder: Path) -> dict[str, Any]:
    """Train in this process."""
    import torch

    from cft_ray.training import engine
    from cft_ray.training.job import Job
    from cft_ray.training.loop import train

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if contender == "zero":
        engine.partitioned = lambda settings, ranks: True
    job = Job.read(folder / "job.json").model_copy(update={"output": tempfile.mkdtemp(), "checkpoints": tempfile.mkdtemp()})
    times, losses = [], []

    def on_step(row: dict[str, Any], steps: int) -> None:
        times.append(time.perf_counter())
        losses.append(row["loss"])

    train(job, on_step)
    return {"steps_per_s": (len(times) - WARM_UP_STEPS) / (times[-1] - times[WARM_UP_STEPS - 1]), "losses": losses}


def measure(contender: str, folder: Path, threads: int) -> dict[str, Any]:
    """In a process of its own; the last line that it prints is its figures."""
    command = [sys.executable, __file__, "--contender", contender, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def prepared(folder: Path, count: int) -> None:
    """The job, its model and its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cft_ray.data.toy import generate
    from cft_ray.grid.schema import load_grid
    from cft_ray.grid.settings import Template, TrainingSettings
    from cft_ray.training import model
    from cft_ray.training.job import Job

    grid = load_grid(ROOT / "grids" / "smoke.yaml", [])
    scratch = grid.models["mistral-toy"]["base"].scratch
    assert scratch is not None
    names = ("id", "language", "system", "instruction", "input", "output")
    rows = [{name: row.get(name, "") for name in names} for row in generate("alpaca", "en")]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    Job(
        model=str(model.create(scratch, 0, folder / "model")),
        rows=str(folder / "rows.parquet"),
        template=Template(name="toy"),
        training=TrainingSettings(
            steps=count, batch_size=32, learning_rate=2e-3, warmup_steps=5, beta2=0.98, max_length=128, precision="fp32"
        ),
        output=str(folder / "output"),
        scratch=str(folder / "scratch"),
        checkpoints=str(folder / "checkpoints"),
    ).write(folder / "job.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=["whole", "zero"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(steps(arguments.contender, arguments.folder)))
        return
    figures: dict[str, Any] = {"goal_ratio": 1.5}
    with tempfile.TemporaryDirectory(prefix="cft-ray-steps-") as folder:
        prepared(Path(folder), arguments.steps)
        for threads in arguments.threads:
            runs: dict[str, list[dict[str, Any]]] = {"zero": [], "whole": []}
            for _ in range(arguments.rounds):
                for contender, results in runs.items():
                    results.append(measure(contender, Path(folder), threads))
            pace = {name: statistics.median(run["steps_per_s"] for run in results) for name, results in runs.items()}
            apart = max(
                abs(one - other) / other for one, other in zip(runs["whole"][0]["losses"], runs["zero"][0]["losses"], strict=True)
            )
            figures[f"threads_{threads}"] = {
                "steps_per_s_whole": round(pace["whole"], 2),
                "steps_per_s_zero3": round(pace["zero"], 2),
                "ratio": round(pace["whole"] / pace["zero"], 3),
                "largest_relative_difference_of_losses": apart,
            }
    command = f"python benchmarks/whole_steps.py --rounds {arguments.rounds}"
    print(record("whole_steps", command, figures), figures)


if __name__ == "__main__":
    main()
