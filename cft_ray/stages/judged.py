"""Stage `evaluate` where a judge compares answers (AlpacaEval): answers, judgements, win rates.

Three pieces of work with needs of their own. Answers come from a Ray task with the stage's GPUs, which are free again when
it ends. An endpoint is asked by the process that drives the stage: it waits for the network and needs no device. A local
judge gets a task as the model did, with the same resources. What each has done lies in the stage's checkpoints: a stage that
dies asks neither the model nor the judge twice.
"""

from typing import Any, cast

from cft_ray.evaluation.rows import Evaluation
from cft_ray.plan.specs import EvaluateSpec
from cft_ray.stages import remote
from cft_ray.stages.context import StageContext

_WHOLE = "alpaca_eval"
"""Name of all answers together among the answers that are kept."""
_ACCOUNT = f"{_WHOLE}-account"
"""As `_WHOLE`: how many prompts and answers did not fit as they were."""


def evaluate(context: StageContext) -> tuple[Evaluation, dict[str, Any]]:
    """Answer, judge and score.

    Returns:
        rows for the tables; what the judging took, for the manifest.

    Raises:
        UserError: items, model or judge cannot be had.
        StageFailed: the judge leaves too many items without judgement.
    """
    from cft_ray.evaluation.alpaca_eval.annotations import Annotations
    from cft_ray.evaluation.alpaca_eval.annotator import TIE, Annotator
    from cft_ray.evaluation.alpaca_eval.endpoint import Endpoint
    from cft_ray.evaluation.alpaca_eval.items import read_items
    from cft_ray.evaluation.alpaca_eval.judging import judge_all
    from cft_ray.evaluation.alpaca_eval.rows import evaluation_of, judging_of
    from cft_ray.evaluation.alpaca_eval.win_rate import MODELS, win_rates
    from cft_ray.evaluation.answers import Answers

    spec = cast(EvaluateSpec, context.stage.spec)
    judge = spec.judge
    assert judge is not None
    source = read_items(spec.items, spec.limit)
    items = source.items
    endpoint = Endpoint(judge, Annotator(judge)) if judge.model is not None else None
    if endpoint is not None:
        endpoint.check()  # before hours of answers that nobody would judge

    kept = Answers(context.checkpoints, context.prove)
    if len(kept.read(_WHOLE)) < len(items):
        remote.call(_answer, context, engine=True)
    there = kept.read(_WHOLE)
    answers = [there[item.number] for item in items]
    questions = _questions(Annotator(judge), items, answers)
    annotations = Annotations(context.checkpoints)
    if endpoint is not None:

        def tell(done: int, total: int) -> None:
            context.progress(done=done, total=total, unit="judgements", note="")

        tally = judge_all(endpoint, questions, annotations, judge, tell)
        failures = tally.counts
    else:
        failures = remote.call(_judge, context, engine=True)
        annotations.read(questions)

    found = annotations.found
    preferences = {number: annotation.preference for number, annotation in found.items() if annotation.preference is not None}
    asked = {question.number for question in questions}
    preferences |= {item.number: TIE for item in items if item.number not in asked}
    metrics = win_rates(items, answers, preferences, source.control)
    taken = judging_of(judge, len(items), found, failures)
    taken["length_control"] = [model for metric, model in MODELS.items() if metric in metrics]
    if source.revisions:
        taken["revisions"] = source.revisions
    taken |= kept.read(_ACCOUNT).get(0, {})
    return evaluation_of(spec, items, answers, preferences, metrics), taken


def _questions(annotator: Any, items: Any, answers: list[str]) -> list[Any]:
    """About all items but those whose answer is the reference word for word: these are ties, as in the package."""
    return [annotator.question(item, answer) for item, answer in zip(items, answers, strict=True) if answer != item.reference]


def _answer(context: StageContext) -> None:
    """In a worker: the model's answers, into the checkpoints."""
    from cft_ray.evaluation.alpaca_eval.answers import answers
    from cft_ray.evaluation.alpaca_eval.items import read_items
    from cft_ray.evaluation.answers import FIRST, Answers, Kept
    from cft_ray.evaluation.models import load_model
    from cft_ray.generation.settings import device

    spec = cast(EvaluateSpec, context.stage.spec)
    items = read_items(spec.items, spec.limit).items
    context.progress(note="the model is loaded")
    model = load_model(context.model("model"), spec, gpus=context.stage.resources.gpus)

    def tell(done: int, total: int) -> None:
        context.progress(done=done, total=total, unit="answers", note="")

    kept = Answers(context.checkpoints, context.prove)
    asked = Kept(model, kept, first=FIRST[device()], progress=tell)
    found = answers(asked, items, spec)
    kept.write(_ACCOUNT, {0: asked.account()})
    kept.write(_WHOLE, {item.number: answer for item, answer in zip(items, found, strict=True)})


def _judge(context: StageContext) -> dict[str, int]:
    """In a worker: the local judge's judgements, into the checkpoints; returns the counts of its failures."""
    from cft_ray.evaluation.alpaca_eval.annotations import Annotations
    from cft_ray.evaluation.alpaca_eval.annotator import Annotator
    from cft_ray.evaluation.alpaca_eval.items import read_items
    from cft_ray.evaluation.alpaca_eval.local import judge_locally
    from cft_ray.evaluation.answers import Answers

    spec = cast(EvaluateSpec, context.stage.spec)
    assert spec.judge is not None
    items = read_items(spec.items, spec.limit).items
    there = Answers(context.checkpoints).read(_WHOLE)
    annotator = Annotator(spec.judge)
    questions = _questions(annotator, items, [there[item.number] for item in items])

    def tell(done: int, total: int) -> None:
        context.progress(done=done, total=total, unit="judgements", note="")

    tally = judge_locally(
        context.model("judge"),
        questions,
        annotator,
        Annotations(context.checkpoints),
        spec.judge,
        spec.engine,
        gpus=context.stage.resources.gpus,
        progress=tell,
    )
    return tally.counts
