"""A process that judges the planted items: ``judge_drive.py FOLDER URL ITEMS``; prints how many judgements it has."""

import sys

from cft_ray.evaluation.alpaca_eval.annotations import Annotations
from cft_ray.evaluation.alpaca_eval.annotator import Annotator, Question
from cft_ray.evaluation.alpaca_eval.endpoint import Endpoint
from cft_ray.evaluation.alpaca_eval.items import Item
from cft_ray.evaluation.alpaca_eval.judging import Tally, judge_all
from cft_ray.grid.settings import JudgeSettings


def planted_items(count: int) -> list[Item]:
    """``instruction N`` and ``reference N``."""
    return [Item(number, f"instruction {number}", f"reference {number}") for number in range(count)]


def planted_questions(count: int, settings: JudgeSettings) -> list[Question]:
    """About ``answer N``."""
    annotator = Annotator(settings)
    return [annotator.question(item, f"answer {item.number}") for item in planted_items(count)]


def judge(folder: str, settings: JudgeSettings, count: int) -> tuple[Annotations, Tally]:
    """Judge the planted items as a stage does."""
    annotations = Annotations(folder)
    tally = judge_all(Endpoint(settings, Annotator(settings)), planted_questions(count, settings), annotations, settings)
    return annotations, tally


if __name__ == "__main__":
    folder, url, count = sys.argv[1:]
    settings = JudgeSettings(model="planted", base_url=url, max_concurrency=4)
    found, _ = judge(folder, settings, int(count))
    print(len(found.found))
