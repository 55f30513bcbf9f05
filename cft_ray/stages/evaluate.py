"""Stage `evaluate`: one benchmark of one model, in a process with the stage's CPUs and GPUs.

The process may hold the engine of the same model from the stage before: a CPU task's, which Ray reuses, or a host on GPUs
(`cft_ray.execute.hosts`). Answers are kept part by part in the stage's checkpoints, so that a stage that dies is taken up
where it was, by whichever machine.
"""

from typing import Any, cast

from cft_ray.errors import UserError
from cft_ray.evaluation.rows import Evaluation
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.plan.specs import EvaluateSpec
from cft_ray.stages import judged, remote
from cft_ray.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Evaluate and write ``tables/scores.parquet`` and ``tables/samples.parquet``.

    Returns:
        language -> value of the shown metric, and ``mean`` over the languages; ``revisions``, hub data set -> commit, where
        items came from the hub; ``account``, how many requests did not fit the model's context as they were, by what was
        changed (`cft_ray.generation.budget`), where any; what the judging took, where a judge compares answers
        (`cft_ray.stages.judged`).

    Raises:
        UserError: a benchmark that cannot be run yet, an unknown task or metric, items or a model that cannot be loaded.
    """
    import pyarrow.parquet as pq

    from cft_ray.metrics.schemas import table_of

    spec = cast(EvaluateSpec, context.stage.spec)
    declared = BENCHMARKS.get(spec.benchmark)
    if declared is not None and declared.missing:
        raise UserError(f"the benchmark cannot be run yet: {declared.missing}", where=f"benchmark {spec.benchmark}")
    context.progress(note=", ".join(spec.tasks.values()))
    if spec.judge is not None:
        result, more = judged.evaluate(context)
    else:
        result, more = _by_harness(context)
    tables = context.output / "tables"
    tables.mkdir()
    pq.write_table(table_of("scores", result.scores), tables / "scores.parquet")
    pq.write_table(table_of("samples", result.samples), tables / "samples.parquet")
    outputs: dict[str, Any] = {**result.shown, "mean": sum(result.shown.values()) / len(result.shown)}
    return outputs | more


def _by_harness(context: StageContext) -> tuple[Evaluation, dict[str, Any]]:
    result, revisions, account = remote.call(evaluate, context, engine=True)
    return result, ({"revisions": revisions} if revisions else {}) | account


def evaluate(context: StageContext) -> tuple[Evaluation, dict[str, str], dict[str, Any]]:
    """In the worker: inputs are fetched where they are read, and the items looked at before a model is loaded."""
    from cft_ray.generation.settings import device, prepare_environment

    prepare_environment()  # before the harness is imported: its progress bars look at it then
    from cft_ray.evaluation.answers import FIRST, Answers, Kept
    from cft_ray.evaluation.harness import ask, load_benchmark
    from cft_ray.evaluation.models import load_model

    spec = cast(EvaluateSpec, context.stage.spec)
    items = context.input("data") / "rows.parquet" if "data" in context.stage.inputs else None
    benchmark = load_benchmark(spec, items)
    context.progress(note="the model is loaded")
    model = load_model(context.model("model"), spec, gpus=context.stage.resources.gpus)

    def tell(done: int, total: int) -> None:
        context.progress(done=done, total=total, unit="requests", note="")

    kept = Kept(model, Answers(context.checkpoints, context.prove), first=FIRST[device()], progress=tell)
    result = ask(kept, benchmark)
    return result, benchmark.revisions, kept.account()
