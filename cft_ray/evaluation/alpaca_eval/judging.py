"""All questions to a judge: several at a time, each judgement kept at once, and an end when too many fail.

An interrupted judging goes on with what is not kept. What was on its way when the process died (at most
``max_concurrency`` requests) is asked again: nothing of it had come.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from cft_ray.errors import StageFailed
from cft_ray.evaluation.alpaca_eval.annotations import Annotation, Annotations
from cft_ray.evaluation.alpaca_eval.annotator import Question
from cft_ray.evaluation.alpaca_eval.endpoint import Endpoint, NoAnswer
from cft_ray.grid.settings import JudgeSettings


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


def taken_up(questions: Sequence[Question], annotations: Annotations, settings: JudgeSettings) -> tuple[Tally, list[Question]]:
    """The tally of the judgements that are kept already, and the questions that have none.

    Raises:
        StageFailed: too many items stay without judgement.
    """
    tally = Tally(settings, len(questions))
    found = annotations.read(questions)
    for annotation in found.values():
        tally.add(annotation.failure, annotation.said)
    return tally, [question for question in questions if question.number not in found]


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
    done = len(questions) - len(waiting)
    progress(done, len(questions))

    def ask(question: Question) -> Annotation:
        annotation = endpoint.judge(question)
        annotations.keep(annotation)  # here, and not where it is collected: the sooner it lies there, the less is lost
        return annotation

    with ThreadPoolExecutor(settings.max_concurrency, thread_name_prefix="judge") as pool:
        running: set[Future[Annotation]] = set()
        while waiting or running:
            while waiting and len(running) < settings.max_concurrency:
                running.add(pool.submit(ask, waiting.pop(0)))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    annotation = future.result()
                except NoAnswer as error:
                    tally.add("unanswered", str(error))
                else:
                    tally.add(annotation.failure, annotation.said)
                    done += 1
            progress(done, len(questions))
    return tally
