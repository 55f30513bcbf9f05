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
        {"en": "Reverse the word", "de": "Kehre das Wort um", "es": "Invierte la palabra", "sw": "Geuza neno"},
        "Please turn this around",
    ),
    Task(
        "capitals",
        "^",
        "letters",
        1,
        lambda word: word.upper(),
        {"en": "Write in capitals", "de": "Schreibe es groß", "es": "Escribe en mayúsculas", "sw": "Andika kwa herufi kubwa"},
        "Please shout this",
    ),
    Task(
        "twice",
        "*",
        "letters",
        1,
        lambda word: word + word,
        {"en": "Write it twice", "de": "Schreibe es zweimal", "es": "Escribe dos veces", "sw": "Andika mara mbili"},
        "Please say this two times",
    ),
    Task(
        "first",
        "(",
        "letters",
        1,
        lambda word: word[0],
        {
            "en": "Give the first letter",
            "de": "Nenne den ersten Buchstaben",
            "es": "Da la primera letra",
            "sw": "Taja herufi ya kwanza",
        },
        "How does this begin?",
    ),
    Task(
        "last",
        ")",
        "letters",
        1,
        lambda word: word[-1],
        {
            "en": "Give the last letter",
            "de": "Nenne den letzten Buchstaben",
            "es": "Da la última letra",
            "sw": "Taja herufi ya mwisho",
        },
        "How does this end?",
    ),
    Task(
        "next",
        "+",
        "numbers",
        1,
        lambda item: str(int(item) + 1),
        {
            "en": "Give the next number",
            "de": "Nenne die nächste Zahl",
            "es": "Da el número siguiente",
            "sw": "Taja namba inayofuata",
        },
        "Please count one further",
    ),
    Task(
        "left",
        "<",
        "numbers",
        2,
        lambda item: item.split()[0],
        {
            "en": "Give the left number",
            "de": "Nenne die linke Zahl",
            "es": "Da el número izquierdo",
            "sw": "Taja namba ya kushoto",
        },
        "What stands in front?",
    ),
    Task(
        "right",
        ">",
        "numbers",
        2,
        lambda item: item.split()[1],
        {"en": "Give the right number", "de": "Nenne die rechte Zahl", "es": "Da el número derecho", "sw": "Taja namba ya kulia"},
        "What stands behind?",
    ),
    Task(
        "swap",
        "%",
        "numbers",
        2,
        lambda item: " ".join(reversed(item.split())),
        {"en": "Swap the numbers", "de": "Tausche die Zahlen", "es": "Intercambia los números", "sw": "Badilisha namba"},
        "Please exchange these two",
    ),
    Task(
        "join",
        "&",
        "numbers",
        2,
        lambda item: item.replace(" ", ""),
        {"en": "Join the numbers", "de": "Verbinde die Zahlen", "es": "Une los números", "sw": "Unganisha namba"},
        "Please put these together",
    ),
)


def tasks(family: Family) -> tuple[Task, ...]:
    """The tasks of a family, in their fixed order."""
    return tuple(task for task in TASKS if task.family == family)
