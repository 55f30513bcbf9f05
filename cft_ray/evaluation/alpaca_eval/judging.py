"""All questions to a judge: several at a time, each judgement kept at once, and an end when too many fail.

An interrupted judging goes on with what is not kept. What was on its way when the process died (at most
``max_concurrency`` requests) is asked again: nothing of it had come. A run asks again about every item without a judgement,
but for those that the judge refuses for what they hold. An item that got no answer is left out of the win rate, within
what is tolerated, only when `RUNS` runs have asked in vain: before that the stage fails, so that the next run asks.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from cft_ray.errors import StageFailed
from cft_ray.evaluation.alpaca_eval.annotations import Annotation, Annotations
from cft_ray.evaluation.alpaca_eval.annotator import Question
from cft_ray.evaluation.alpaca_eval.endpoint import Endpoint, NoAnswer
from cft_ray.grid.settings import JudgeSettings

RUNS = 2
"""runs that ask in vain before an item without an answer may be left out"""
FINAL = ("refused",)
"""failures that another run of an endpoint's judge would meet again"""


class Tally:
    """Counts the items that stay without judgement, and says when they are too many.

    Args:
        settings: how many are tolerated.
        total: items.
    """

    def __init__(self, settings: JudgeSettings, total: int) -> None:
        self._total, self._allowed = total, int(settings.tolerate * total)
        self.counts = {"malformed": 0, "refused": 0, "unanswered": 0}
        self._last: dict[str, str] = {}

    def add(self, failure: str | None, said: str) -> None:
        """Count one item; None: it has its judgement.

        Raises:
            StageFailed: more than are tolerated.
        """
        if failure is None:
            return
        self.counts[failure] += 1
        self._last[failure] = said
        if sum(self.counts.values()) > self._allowed:
            parts = [f"{self.counts[kind]} {kind} (last: {said!r})" for kind, said in self._last.items()]
            raise StageFailed(
                f"the judge left {sum(self.counts.values())} of {self._total} items without judgement: {', '.join(parts)}; "
                f"{self._allowed} are tolerated (evaluation.judge.tolerate). What is judged is kept."
            )


def taken_up(
    questions: Sequence[Question], annotations: Annotations, settings: JudgeSettings, final: Sequence[str] = FINAL
) -> tuple[Tally, list[Question]]:
    """The tally of what is kept already and stays, and the questions that are to be asked.

    Args:
        questions: about all items.
        annotations: where judgements are kept; read here.
        settings: how many failures are tolerated.
        final: failures that stay; items with another are asked again.

    Raises:
        StageFailed: too many items stay without judgement.
    """
    tally = Tally(settings, len(questions))
    found = annotations.read(questions)
    stay = {number for number, kept in found.items() if kept.preference is not None or kept.failure in final}
    for number in stay:
        tally.add(found[number].failure, found[number].said)
    return tally, [question for question in questions if question.number not in stay]


def judge_all(
    endpoint: Endpoint,
    questions: Sequence[Question],
    annotations: Annotations,
    settings: JudgeSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tally:
    """Ask about every item that has no judgement yet; afterwards ``annotations.found`` has them.

    Args:
        endpoint: of the judge.
        questions: about all items.
        annotations: where judgements are kept; read here.
        settings: how many at a time, and how many failures are tolerated.
        progress: told the numbers of judgements that are there and of items.

    Raises:
        UserError: see `Endpoint.judge`; what is under way is waited for and kept.
        StageFailed: too many items stay without judgement.
    """
    tally, waiting = taken_up(questions, annotations, settings)
    earlier = annotations.found
    done = len(questions) - len(waiting)
    progress(done, len(questions))

    def ask(question: Question) -> Annotation:
        try:
            annotation = endpoint.judge(question)
        except NoAnswer as error:
            annotation = Annotation(question.number, question.digest, None, "unanswered", str(error))
        before = earlier.get(question.number)
        if before is not None:  # what was asked in vain has cost too
            annotation = replace(
                annotation,
                prompt_tokens=before.prompt_tokens + annotation.prompt_tokens,
                completion_tokens=before.completion_tokens + annotation.completion_tokens,
                attempts=before.attempts + annotation.attempts,
                runs=before.runs + 1,
            )
        annotations.keep(annotation)  # here, and not where it is collected: the sooner it lies there, the less is lost
        return annotation

    with ThreadPoolExecutor(settings.max_concurrency, thread_name_prefix="judge") as pool:
        running: set[Future[Annotation]] = set()
        while waiting or running:
            while waiting and len(running) < settings.max_concurrency:
                running.add(pool.submit(ask, waiting.pop(0)))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                annotation = future.result()
                tally.add(annotation.failure, annotation.said)
                done += annotation.failure != "unanswered"
            progress(done, len(questions))
    fresh = [kept for kept in annotations.found.values() if kept.failure == "unanswered" and kept.runs < RUNS]
    if fresh:
        raise StageFailed(
            f"the judge gave no answer this time about {len(fresh)} of {len(questions)} items (last: {fresh[-1].said!r}). "
            "What is judged is kept: run the grid again, and only these are asked."
        )
    return tally
