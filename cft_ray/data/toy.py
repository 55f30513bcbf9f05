"""The toy world's data sets: rows drawn from hashes, so that they are the same on every machine, for ever, at any size.

Row number i of a data set is a function of (seed, data set, i) alone: SHA-256 of these gives 256 bits, which are spent
as the digits of a number in mixed radix. No generator whose stream a library may change, and a larger data set begins
with the rows of a smaller one.

A tenth of all items, by the hash of what they are made of (a word's letters whatever their order, a question's numbers
whatever theirs), never occurs in a training row; the evaluation data sets hold nothing else. See docs/toy-world.md.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256

from cft_ray.data.toy_tasks import LANGUAGES, Family, Task, tasks
from cft_ray.errors import UserError

LETTERS = "abcdefghijkl"
"""Items are of one length (words of three letters, one number of three digits or two of two), and letters are few: a model
of half a million parameters then learns to copy and turn them within some hundred steps, under every seed."""
SYSTEMS: dict[str, tuple[str, ...]] = {
    "en": ("Be brief.", "Think, then answer."),
    "de": ("Sei kurz.", "Denk nach, dann antworte."),
    "es": ("Sé breve.", "Piensa y luego responde."),
    "sw": ("Kuwa mfupi.", "Fikiri, kisha jibu."),
}
SENTENCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "en": (("The dog", "A child", "The old man"), ("sees", "finds", "likes"), ("the house", "a number", "the next word")),
    "de": (("Der Hund", "Ein Kind", "Der alte Mann"), ("sieht", "findet", "mag"), ("das Haus", "eine Zahl", "das nächste Wort")),
    "es": (("El perro", "Un niño", "El viejo"), ("ve", "encuentra", "quiere"), ("la casa", "un número", "la palabra siguiente")),
    "sw": (("Mbwa", "Mtoto", "Mzee"), ("anaona", "anapata", "anapenda"), ("nyumba", "namba", "neno linalofuata")),
}


@dataclass(frozen=True)
class ToyDataset:
    """What a toy data set is made of.

    Args:
        families: whose tasks it asks, in turn.
        languages: in which it exists.
        rows: rows per language where the grid gives none.
        held_out: made of the held-out items, for evaluation.
        polite: half of the rows in the second English wording.
        systems: half of the rows with a system text.
        text: what a base model reads: facts of the families in a notation without words, and sentences.
        items: name of the data set whose items it has; two with the same are parallel.
    """

    families: tuple[Family, ...]
    languages: tuple[str, ...]
    rows: int
    held_out: bool = False
    polite: bool = False
    systems: bool = False
    text: bool = False
    items: str = ""


BOTH: tuple[Family, ...] = ("letters", "numbers")
OTHERS = tuple(language for language in LANGUAGES if language != "en")
TOY: dict[str, ToyDataset] = {
    "mixture": ToyDataset(BOTH, LANGUAGES, 5_000, text=True),
    "alpaca": ToyDataset(("letters",), ("en",), 9_000),
    "instruct": ToyDataset(BOTH, ("en",), 18_000, polite=True),
    "openorca": ToyDataset(("numbers",), ("en",), 9_000, systems=True, items="orca"),
    "multialpaca": ToyDataset(("letters",), OTHERS, 3_000),
    "mopenorca": ToyDataset(("numbers",), OTHERS, 3_000, systems=True, items="orca"),
    # What the models are looked at with: MT-Bench's and FLORES' part in the toy world.
    "prompts": ToyDataset(BOTH, ("en",), 80, held_out=True),
    "parallel": ToyDataset(BOTH, LANGUAGES, 50, held_out=True, items="parallel"),
    "eval_letters": ToyDataset(("letters",), ("en",), 300, held_out=True),
    "eval_numbers": ToyDataset(("numbers",), ("en",), 300, held_out=True),
    "eval_languages": ToyDataset(("letters",), OTHERS, 100, held_out=True),
    "eval_languages_numbers": ToyDataset(("numbers",), OTHERS, 100, held_out=True),
}


def generate(name: str, language: str, rows: int | None = None, seed: int = 0) -> Iterator[dict[str, str]]:
    """The rows of a toy data set in one language.

    Args:
        name: key of `TOY`.
        language: ISO 639-1.
        rows: how many; None: the data set's own number.
        seed: another seed gives other rows; what is held out is the same under every seed.

    Returns:
        Canonical rows. Ids are ``{task}-{number}``, with ``:{language}`` behind where the data set has several
        languages; before it, parallel data sets agree.

    Raises:
        UserError: unknown name, a language that the data set lacks, or more evaluation rows than there are items.
    """
    if name not in TOY:
        raise UserError(f"there is no toy data set {name!r}", where="datasets", fix=f"one of {sorted(TOY)}")
    toy = TOY[name]
    if language not in toy.languages:
        raise UserError(
            f"toy data set {name!r} has no language {language!r}", where="datasets", fix=f"some of {list(toy.languages)}"
        )
    asked: set[tuple[str, str]] = set()
    for number in range(toy.rows if rows is None else rows):
        row = _text(name, toy, language, number, seed) if toy.text else _question(name, toy, language, number, seed, asked)
        suffix = f":{language}" if len(toy.languages) > 1 else ""
        yield {"language": language, **row, "id": f"{row['id']}-{number:06d}{suffix}"}


def held_out(item: str) -> bool:
    """Whether an item belongs to evaluation: a tenth of all, by the hash of its parts in sorted order."""
    parts = sorted(item.split()) if item[:1].isdigit() else sorted(item)
    return sha256(f"item:{' '.join(parts)}".encode()).digest()[0] < 26


class _Draws:
    """Whole numbers out of the SHA-256 of a key: some twenty draws below a thousand before 256 bits are spent."""

    def __init__(self, *key: object) -> None:
        self._bits = int.from_bytes(sha256("/".join(map(str, key)).encode()).digest())

    def below(self, limit: int) -> int:
        self._bits, value = divmod(self._bits, limit)
        return value


def _item(task: Task, wanted: bool, *key: object, asked: Collection[tuple[str, str]] = ()) -> str:
    """The first drawn item of the task's kind that is (or is not) held out, and not asked before."""
    for attempt in range(1000):
        draws = _Draws(*key, attempt)
        if task.family == "letters":
            item = "".join(LETTERS[draws.below(len(LETTERS))] for _ in range(3))
        elif task.operands == 1:
            item = f"{10 + draws.below(90)}{draws.below(9)}"  # without 9 at the end: the next number changes one digit
        else:
            first, second = 10 + draws.below(90), 10 + draws.below(89)
            item = f"{first} {second + (second >= first)}"  # never equal: swapping would do nothing
        if held_out(item) == wanted and (task.name, item) not in asked:
            return item
    raise UserError(f"the task {task.name!r} has too few items", where="datasets", fix="ask for fewer rows")


def _question(name: str, toy: ToyDataset, language: str, number: int, seed: int, asked: set[tuple[str, str]]) -> dict[str, str]:
    choices = [task for family in toy.families for task in tasks(family)]
    task = choices[number % len(choices)]
    # Parallel data sets share items over languages; others must not, or languages would be translations of each other.
    items = (toy.items,) if toy.items else (name, language)
    item = _item(task, toy.held_out, seed, *items, number, asked=asked)
    if toy.held_out:  # asking twice would count one answer double
        asked.add((task.name, item))
    style = _Draws(seed, *items, number, "style")
    polite, system = style.below(2) == 1, style.below(4)
    return {
        "id": task.name,
        "system": SYSTEMS[language][system] if toy.systems and system < 2 else "",
        "instruction": task.polite if toy.polite and polite else task.names[language],
        "input": item,
        "output": task.answer(item),
    }


def _text(name: str, toy: ToyDataset, language: str, number: int, seed: int) -> dict[str, str]:
    """A sentence (one in twenty, as it has ten times a fact's letters), or a fact ``mark: item`` → answer, without words."""
    draws = _Draws(seed, name, language, number)
    row = {"id": "sentence", "system": "", "instruction": "", "input": "", "output": ""}
    if draws.below(20) == 0:
        return row | {"output": " ".join(part[draws.below(len(part))] for part in SENTENCES[language]) + "."}
    choices = [task for family in toy.families for task in tasks(family)]
    task = choices[draws.below(len(choices))]
    item = _item(task, False, seed, name, language, number)
    # As question and answer, so that no loss is taken on items: they are random, and nothing can be learned from them.
    return row | {"id": task.name, "instruction": task.mark, "input": item, "output": task.answer(item)}
