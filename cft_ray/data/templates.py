"""How a canonical row becomes text: a prompt, and the answer that the loss is taken on.

Prompt and answer laid end to end are the text that is trained on. Neither holds the tokenizer's beginning- or
end-of-sequence token: whoever encodes them (trainer, generation engine) puts the first before the prompt, once, and the
second after the answer. Training, replay and evaluation all come here, so that a model is always asked in the words
in which it was taught.

The wording of `alpaca` is a fact of the format (tatsu-lab/stanford_alpaca): models and data sets that call themselves
Alpaca expect exactly it. A system text takes the place of its first paragraph, as is usual for Orca-like rows.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from cft_ray.errors import UserError
from cft_ray.grid.settings import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
ALPACA_WITHOUT_INPUT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


def prompt(template: Template, row: Mapping[str, str], tokenizer: "PreTrainedTokenizerBase | None" = None) -> str:
    """The text that a model is given to answer.

    Args:
        template: which form.
        row: canonical columns; ``output`` is not looked at. ``system`` and ``input`` may be absent.
        tokenizer: needed by ``chat`` alone.

    Returns:
        Text without beginning-of-sequence token; ``""`` for a row that is nothing but an output, in ``plain`` and
        ``toy`` (plain text to learn from).

    Raises:
        UserError: ``chat`` without a tokenizer that has a chat template, or one that refuses the row.
    """
    system = row.get("system") or template.system or ""
    instruction, extra = row["instruction"], row.get("input") or ""
    if template.name == "alpaca":
        return _alpaca(system, instruction, extra)
    if template.name == "chat":
        return _chat(_messages(system, instruction, extra), tokenizer)
    if template.name == "plain":
        return "".join(f"{part}\n\n" for part in (system, instruction, extra) if part)
    return _toy(system, instruction, extra)


def render(template: Template, row: Mapping[str, str], tokenizer: "PreTrainedTokenizerBase | None" = None) -> tuple[str, str]:
    """(prompt, answer) of a row, for training.

    The answer is the row's output; in ``chat`` it is what the chat template writes after the prompt for it (some put a
    space before it or a mark of their own behind it), less a closing end-of-sequence token.

    Raises:
        UserError: as `prompt`.
    """
    question = prompt(template, row, tokenizer)
    if template.name != "chat" or tokenizer is None:
        return question, row["output"]
    system = row.get("system") or template.system or ""
    messages = _messages(system, row["instruction"], row.get("input") or "")
    whole = _chat([*messages, {"role": "assistant", "content": row["output"]}], tokenizer, ask=False)
    if not whole.startswith(question):  # a template that rewrites earlier turns; the plain answer is still right
        return question, row["output"]
    answer = whole[len(question) :]
    end = tokenizer.eos_token
    if isinstance(end, str) and answer.rstrip().endswith(end):
        answer = answer.rstrip().removesuffix(end)
    return question, answer


def _alpaca(system: str, instruction: str, extra: str) -> str:
    opening = system or (ALPACA_WITH_INPUT if extra else ALPACA_WITHOUT_INPUT)
    context = f"### Input:\n{extra}\n\n" if extra else ""
    return f"{opening}\n\n### Instruction:\n{instruction}\n\n{context}### Response:\n"


def _toy(system: str, instruction: str, extra: str) -> str:
    # Ends in a character that is no white space: evaluation harnesses may strip a prompt's end.
    question = ": ".join(part for part in (instruction, extra) if part)
    if not question:
        return ""
    return f"{system}\n{question} =" if system else f"{question} ="


def _messages(system: str, instruction: str, extra: str) -> list[dict[str, str]]:
    user = {"role": "user", "content": f"{instruction}\n\n{extra}" if extra else instruction}
    return [{"role": "system", "content": system}, user] if system else [user]


def _chat(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase | None", *, ask: bool = True) -> str:
    if tokenizer is None or not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template",
            where="template.name: chat",
            fix="use the template alpaca or plain, or a model whose tokenizer has a chat template",
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except TemplateError as error:
        if messages[0]["role"] != "system":
            raise UserError(f"the tokenizer's chat template refuses a row ({error})", where="template.name: chat") from error
        # Mistral's early instruct models know no system role: its text then opens the user's turn.
        system, user, *rest = messages
        merged = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
        return _chat([merged, *rest], tokenizer, ask=ask)
    if not isinstance(text, str):
        raise TypeError(f"apply_chat_template gave a {type(text).__name__}")
    begin = tokenizer.bos_token
    return text.removeprefix(begin) if isinstance(begin, str) and begin else text
