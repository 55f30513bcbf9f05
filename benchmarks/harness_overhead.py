"""What MMLU's 14,042 questions cost beside the model: bookkeeping of the harness and of ours, in CPU seconds.

The model is planted: it answers at once. What remains is importing, finding and loading the 57 tasks, building 56,168
requests, keeping the answers, scoring, and writing the rows. Goal: 60 CPU seconds. Beside it, in the same run, what the
harness' own way costs: an index of all its tasks, and loading MMLU through it (one data set a subject, by `datasets`).

    python benchmarks/harness_overhead.py --data ../shared/data/mmlu/test.parquet
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record

GOAL_SECONDS = 60.0


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mmlu/test.parquet"), help="MMLU's test items")
    parser.add_argument("--limit", type=int, help="items per subject; none: all, which is what is recorded")
    given = parser.parse_args()
    figures = ours(given.data, given.limit) | stock_index()
    figures["share_of_goal"] = round(figures["cpu_seconds"] / GOAL_SECONDS, 3)
    for name, value in figures.items():
        print(f"{name}: {value}")
    if given.limit is None:
        record("harness_overhead", "python benchmarks/harness_overhead.py", figures)


def ours(data: Path, limit: int | None) -> dict[str, Any]:
    """CPU seconds of each part of a stage but the model."""
    clock = [time.process_time()]
    parts: dict[str, float] = {}

    def lap(name: str) -> None:
        clock.append(time.process_time())
        parts[f"{name}_cpu_seconds"] = round(clock[-1] - clock[-2], 2)

    from cft_ray.generation.settings import prepare_environment

    prepare_environment()
    import pyarrow.parquet as pq
    from lm_eval.api.model import LM

    from cft_ray.evaluation.answers import Answers, Kept
    from cft_ray.evaluation.harness import ask, load_benchmark
    from cft_ray.evaluation.templated import Templated
    from cft_ray.grid.benchmarks import BENCHMARKS
    from cft_ray.metrics.schemas import table_of
    from cft_ray.plan.specs import EvaluateSpec, ItemsSource

    class AtOnce(Templated, LM):
        """Prefers the right answer, without a thought."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(float("ABCD"[request.doc["answer"]] == request.args[1].strip()), False) for request in requests]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise NotImplementedError

    lap("import")
    mmlu = BENCHMARKS["mmlu"]
    spec = EvaluateSpec(
        benchmark="mmlu",
        ability=mmlu.ability,
        tasks=mmlu.tasks,
        metric=mmlu.metric,
        generation=mmlu.generation,
        limit=limit,
        items=ItemsSource(files={"scored": str(data.resolve())}),
    )
    benchmark = load_benchmark(spec)
    lap("load")
    with tempfile.TemporaryDirectory() as folder:
        result = ask(Kept(AtOnce(), Answers(folder)), benchmark)
        lap("ask_and_score")
        pq.write_table(table_of("scores", result.scores), Path(folder, "scores.parquet"))
        pq.write_table(table_of("samples", result.samples), Path(folder, "samples.parquet"))
        lap("write")
    assert result.shown == {"en": 1.0}
    return {"questions": len(result.samples), "cpu_seconds": round(clock[-1] - clock[0], 2), **parts}


def stock_index() -> dict[str, Any]:
    """CPU seconds of the harness' index of all its tasks, which ours does without."""
    from lm_eval.tasks import TaskManager

    begun = time.process_time()
    TaskManager()
    return {"stock_index_cpu_seconds": round(time.process_time() - begun, 2)}


if __name__ == "__main__":
    main()
