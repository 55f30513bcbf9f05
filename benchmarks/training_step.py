"""Non-padding tokens per second and peak memory of a training step, against TRL's `SFTTrainer`.

Same model, rows, batch size, precision and threads, one worker; each contender in a process of its own. TRL
keeps its defaults (padded batches, loss on the completion), gradient checkpointing aside, which is set alike in both.

Three data sets: Alpaca's real rows (skipped if the file is absent), lengths that differ widely, near-uniform lengths.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from record import ROOT, record

WARM_UP_STEPS = 3
ALPACA = ROOT.parent / "shared" / "data" / "alpaca" / "train.parquet"


def rows_of(pairs: list[tuple[str, str]]) -> pa.Table:
    constant = {"language": "en", "system": "", "input": ""}
    return pa.Table.from_pylist(
        [{"id": str(i), "instruction": ask, "output": answer, **constant} for i, (ask, answer) in enumerate(pairs)]
    )


def data_sets(alpaca: Path, count: int) -> dict[str, pa.Table]:
    """Name -> canonical rows."""
    generator = random.Random(0)

    def text(length: int) -> str:
        return "".join(generator.choices("etaoin shrdlu", k=length))

    found = {}
    if alpaca.exists():
        table = pq.read_table(alpaca)
        picked = generator.sample(range(table.num_rows), count)
        lines = table.take(picked).to_pylist()
        found["alpaca"] = rows_of([(f"{row['instruction']}\n{row['input']}", row["output"]) for row in lines])
    # One row in twelve is long: as in a data set of chats among short questions.
    wide = [generator.randint(700, 950) if generator.random() < 1 / 12 else generator.randint(20, 80) for _ in range(count)]
    found["wide"] = rows_of([(text(10), text(length)) for length in wide])
    found["uniform"] = rows_of([(text(40), text(generator.randint(200, 215))) for _ in range(count)])
    return found


def ours(folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    from cft_ray.training.job import Job
    from cft_ray.training.loop import train

    job = Job.read(folder / "job.json").model_copy(update={"output": tempfile.mkdtemp(), "checkpoints": tempfile.mkdtemp()})
    ticks: list[tuple[float, int]] = []
    memory: list[int] = []

    def on_step(row: dict[str, Any], steps: int) -> None:
        ticks.append((time.perf_counter(), row["tokens"]))
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    train(job, on_step)
    return figures(ticks, memory[-1])


def trl(folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from cft_ray.training import group
    from cft_ray.training.job import Job

    job = Job.read(folder / "job.json")
    table = pq.read_table(job.rows).to_pydict()
    prompts = [f"{ask}\n\n" for ask in table["instruction"]]
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokens: list[int] = []
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    trainer = SFTTrainer(
        model=job.model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=job.training.steps or 0,
            per_device_train_batch_size=job.training.batch_size,
            learning_rate=job.training.learning_rate,
            max_length=job.training.max_length,
            gradient_checkpointing=job.training.gradient_checkpointing,
            bf16=job.training.precision == "bf16",
            use_cpu=group.device().type == "cpu",
            model_init_kwargs={"dtype": "float32" if job.training.precision == "fp32" else "bfloat16"},
            warmup_steps=job.training.warmup_steps,
            logging_steps=10**6,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts, "completion": table["output"]}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    collator = trainer.data_collator

    def counting(features: Any) -> Any:
        batch = collator(features)
        tokens.append(int(batch["attention_mask"].sum()))
        return batch

    trainer.data_collator = counting
    trainer.train()
    return figures(list(zip(times, tokens, strict=False)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def figures(ticks: list[tuple[float, int]], memory_kib: int) -> dict[str, Any]:
    tokens = sum(count for _, count in ticks[WARM_UP_STEPS:])
    return {
        "tokens_per_s": tokens / (ticks[-1][0] - ticks[WARM_UP_STEPS - 1][0]),
        "tokens_per_step": statistics.mean(count for _, count in ticks),
        "peak_rss_mib": memory_kib / 1024,
    }


def measure(contender: str, folder: Path, threads: int) -> dict[str, Any]:
    """Run a contender in a process of its own; the last line that it prints is its figures."""
    command = [sys.executable, __file__, "--contender", contender, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="contenders in turn, this often; medians are compared")
    parser.add_argument("--alpaca", type=Path, default=ALPACA, help="Parquet file with instruction, input, output")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="in both")
    parser.add_argument("--only", help="one data set")
    parser.add_argument("--contender", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.contender:
        result = {"ours": ours, "trl": trl}[settings.contender](settings.folder, settings)
        print(json.dumps(result))
        return

    from cft_ray.grid.settings import ScratchModel, Template, TrainingSettings
    from cft_ray.training import model
    from cft_ray.training.job import Job

    shape = ScratchModel(
        hidden_size=settings.hidden_size,
        layers=settings.layers,
        heads=settings.hidden_size // 32,
        kv_heads=settings.hidden_size // 64,
        intermediate_size=3 * settings.hidden_size,
        max_positions=1024,
    )
    training = TrainingSettings(
        learning_rate=1e-4,
        steps=settings.steps,
        batch_size=settings.batch_size,
        precision="fp32",
        max_length=1024,
        long_rows="truncate",
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        initial = model.create(shape, 0, Path(root) / "model")
        for name, rows in data_sets(settings.alpaca, settings.steps * settings.batch_size).items():
            if settings.only not in (None, name):
                continue
            folder = Path(root) / name
            folder.mkdir()
            pq.write_table(rows, folder / "rows.parquet")
            Job(
                model=str(initial),
                rows=str(folder / "rows.parquet"),
                template=Template(name="plain"),
                training=training,
                output=str(folder / "output"),
                scratch=str(folder / "scratch"),
                checkpoints=str(folder / "checkpoints"),
            ).write(folder / "job.json")
            runs = {contender: [] for contender in ("trl", "ours")}
            for _ in range(settings.rounds):
                for contender, results in runs.items():
                    results.append(measure(contender, folder, settings.threads))
            middle = {
                contender: {key: statistics.median(one[key] for one in results) for key in results[0]}
                for contender, results in runs.items()
            }
            found[name] = {
                **middle,
                "speed_ratio": middle["ours"]["tokens_per_s"] / middle["trl"]["tokens_per_s"],
                "memory_ratio": middle["ours"]["peak_rss_mib"] / middle["trl"]["peak_rss_mib"],
            }
            print(name, json.dumps(found[name], indent=2))
    options = {key: value for key, value in vars(settings).items() if key not in ("contender", "folder", "alpaca")}
    print(record("training_step", "python benchmarks/training_step.py", {"settings": options, **found}))


if __name__ == "__main__":
    main()
