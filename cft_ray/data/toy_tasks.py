"""The tasks of the toy world: two families, each task an exact function of a short text, and its name in four languages.

What is asked does not depend on the language; how it is asked does. So a model may know a task and not understand the
question, understand the question and not know the task, or lose either: what the study calls task ability and language
ability, at a size that a laptop can train. Pure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Family = Literal["letters", "numbers"]
LANGUAGES: tuple[str, ...] = ("en", "de", "es", "sw")


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: unique, part of the rows' ids.
        mark: its sign in the notation without words that a base model learns.
        family: what it works on: a word of letters, or one or two numbers.
        operands: for numbers, how many.
        answer: the one right answer to an item.
        names: language -> the instruction.
        polite: a second wording in English, which the `instruct` data set uses beside the first.
    """

    name: str
    mark: str
    family: Family
    operands: int
    answer: Callable[[str], str]
    names: dict[str, str]
    polite: str


TASKS: tuple[Task, ...] = (
    Task(
        "reverse",
        "~",
        "letters",
        1,
        lambda word: word[::-1],
        {"en": "Reverse", "de": "Umkehren", "es": "Invierte", "sw": "Geuza"},
        "Turn around",
    ),
    Task(
        "capitals",
        "^",
        "letters",
        1,
        lambda word: word.upper(),
        {"en": "Capitals", "de": "Groß", "es": "Mayúsculas", "sw": "Kubwa"},
        "Shout",
    ),
    Task(
        "twice",
        "*",
        "letters",
        1,
        lambda word: word + word,
        {"en": "Twice", "de": "Zweimal", "es": "Dos veces", "sw": "Mara mbili"},
        "Say again",
    ),
    Task(
        "first",
        "(",
        "letters",
        1,
        lambda word: word[0],
        {"en": "First letter", "de": "Anfang", "es": "Primera", "sw": "Ya kwanza"},
        "How begins",
    ),
    Task(
        "last",
        ")",
        "letters",
        1,
        lambda word: word[-1],
        {"en": "Last letter", "de": "Ende", "es": "Última", "sw": "Ya mwisho"},
        "How ends",
    ),
    Task(
        "next",
        "+",
        "numbers",
        1,
        lambda item: str(int(item) + 1),
        {"en": "Next", "de": "Nachfolger", "es": "Siguiente", "sw": "Inayofuata"},
        "Count on",
    ),
    Task(
        "left",
        "<",
        "numbers",
        2,
        lambda item: item.split()[0],
        {"en": "Left", "de": "Linke", "es": "Izquierdo", "sw": "Kushoto"},
        "In front",
    ),
    Task(
        "right",
        ">",
        "numbers",
        2,
        lambda item: item.split()[1],
        {"en": "Right", "de": "Rechte", "es": "Derecho", "sw": "Kulia"},
        "Behind",
    ),
    Task(
        "swap",
        "%",
        "numbers",
        2,
        lambda item: " ".join(reversed(item.split())),
        {"en": "Swap", "de": "Tauschen", "es": "Intercambia", "sw": "Badilisha"},
        "Exchange",
    ),
    Task(
        "join",
        "&",
        "numbers",
        2,
        lambda item: item.replace(" ", ""),
        {"en": "Join", "de": "Verbinden", "es": "Une", "sw": "Unganisha"},
        "Glue together",
    ),
)


def tasks(family: Family) -> tuple[Task, ...]:
    """The tasks of a family, in their fixed order."""
    return tuple(task for task in TASKS if task.family == family)
