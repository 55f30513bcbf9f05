"""How a canonical row becomes a conversation, and how the grid's own templates word it.

The wording of `alpaca` is a fact of the format (tatsu-lab/stanford_alpaca): models and data sets that call themselves
Alpaca expect exactly it. A system text takes the place of its first paragraph, as is usual for Orca-like rows. What a
tokenizer's chat template makes of a conversation is in `cft_ray.data.chat_template`; how text becomes tokens in
`cft_ray.data.encoding`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from cft_ray.data.rows import load_turns
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
ALPACA_WITHOUT_INPUT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

_ALPACA_ASKS = "### Instruction:\n"
OPENINGS = {
    "alpaca": tuple((f"{text}\n\n", _ALPACA_ASKS) for text in (ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT)),
}
"""template -> what many prompts begin with, and what follows there"""


class Conversation(NamedTuple):
    """What is said in a row.

    Args:
        system: system text, possibly ``""``.
        turns: what comes before the last user turn: (user, assistant) texts.
        instruction: of the last user turn.
        extra: its input, possibly ``""``.
    """

    system: str
    turns: tuple[tuple[str, str], ...]
    instruction: str
    extra: str

    @property
    def asked(self) -> str:
        """The last user turn as one text."""
        return f"{self.instruction}\n\n{self.extra}" if self.extra else self.instruction


def conversation(template: Template, row: Mapping[str, str]) -> Conversation:
    """The conversation of a canonical row; ``system``, ``input`` and ``turns`` may be absent.

    Raises:
        UserError: the row's column `turns` is malformed.
    """
    try:
        turns = load_turns(row.get("turns") or "")
    except ValueError as error:
        raise UserError(f"the earlier turns of row {row.get('id')} cannot be read ({error})", where="turns") from error
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return Conversation(
        system=row.get("system") or template.system or "",
        turns=tuple((user["content"], assistant["content"]) for user, assistant in pairs),
        instruction=row["instruction"],
        extra=row.get("input") or "",
    )


def prompts(template: Template, said: Conversation) -> list[str]:
    """The text before each answer of a conversation, in the grid's own templates.

    Args:
        template: any but ``chat``.
        said: the conversation.

    Returns:
        One text for each earlier turn, in order, then the last. Answer and end token follow each. ``""`` for a row that is
        nothing but an output, in ``plain`` and ``toy`` (plain text to learn from).
    """
    asked = [(user, "") for user, _ in said.turns] + [(said.instruction, said.extra)]
    if template.name == "alpaca":
        opening = said.system or (ALPACA_WITH_INPUT if asked[0][1] else ALPACA_WITHOUT_INPUT)
        texts = [_alpaca(instruction, extra) for instruction, extra in asked]
        return [f"{opening}\n\n{texts[0]}", *texts[1:]]
    if template.name == "plain":
        texts = ["".join(f"{part}\n\n" for part in parts if part) for parts in asked]
        return [(f"{said.system}\n\n" if said.system else "") + texts[0], *texts[1:]]
    texts = [_toy(instruction, extra) for instruction, extra in asked]
    return [f"{said.system}\n{texts[0]}" if said.system and texts[0] else texts[0], *texts[1:]]


def _alpaca(instruction: str, extra: str) -> str:
    context = f"### Input:\n{extra}\n\n" if extra else ""
    return f"{_ALPACA_ASKS}{instruction}\n\n{context}### Response:\n"


def _toy(instruction: str, extra: str) -> str:
    # Ends in a character that is no white space: evaluation harnesses may strip a prompt's end.
    question = ": ".join(part for part in (instruction, extra) if part)
    return f"{question} =" if question else ""
