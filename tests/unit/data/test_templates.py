"""The grid's own templates, and conversations of rows."""

import pytest

from cft_ray.data.rows import dump_turns
from cft_ray.data.templates import conversation, prompts
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template

ROW = {"id": "1", "language": "en", "system": "", "instruction": "Add.", "input": "1 2", "output": "3"}


def prompt(template: Template, row: dict[str, str]) -> str:
    (text,) = prompts(template, conversation(template, row))
    return text


def test_alpaca_with_input_has_the_four_known_parts_in_order() -> None:
    opening, instruction, context, response = prompt(Template(name="alpaca"), ROW).split("\n\n")
    assert opening.startswith(
        "Below is an instruction that describes a task, paired with an input that provides further context."
    )
    assert opening.endswith(" Write a response that appropriately completes the request.")
    assert instruction == "### Instruction:\nAdd."
    assert context == "### Input:\n1 2"
    assert response == "### Response:\n"


def test_alpaca_without_input_leaves_the_input_part_out() -> None:
    text = prompt(Template(name="alpaca"), {**ROW, "input": ""})
    opening, instruction, response = text.split("\n\n")
    assert opening == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    assert (instruction, response) == ("### Instruction:\nAdd.", "### Response:\n")


def test_a_rows_own_system_text_goes_before_the_templates() -> None:
    template = Template(name="alpaca", system="From the grid.")
    assert prompt(template, ROW).startswith("From the grid.\n\n### Instruction:")
    assert prompt(template, {**ROW, "system": "From the row."}).startswith("From the row.\n\n### Instruction:")


def test_plain_joins_what_is_there_by_blank_lines() -> None:
    assert prompt(Template(name="plain"), ROW) == "Add.\n\n1 2\n\n"
    assert prompt(Template(name="plain"), {**ROW, "system": "S", "input": ""}) == "S\n\nAdd.\n\n"


def test_toy_is_compact_and_ends_in_no_white_space() -> None:
    assert prompt(Template(name="toy"), ROW) == "Add.: 1 2 ="
    assert prompt(Template(name="toy"), {**ROW, "system": "S", "input": ""}) == "S\nAdd. ="


@pytest.mark.parametrize("template", [Template(name="plain"), Template(name="toy")])
def test_plain_text_rows_have_no_prompt(template: Template) -> None:
    assert prompt(template, {**ROW, "instruction": "", "input": ""}) == ""


def test_each_turn_is_asked_as_a_single_one_is() -> None:
    turns = dump_turns([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}])
    said = conversation(Template(name="alpaca"), {**ROW, "turns": turns})
    first, last = prompts(Template(name="alpaca"), said)
    assert first.endswith("request.\n\n### Instruction:\nHi\n\n### Response:\n")
    assert last == "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    assert said.turns == (("Hi", "Yes?"),)


def test_turns_that_are_none_are_refused_with_their_row() -> None:
    with pytest.raises(UserError, match="row 1"):
        conversation(Template(name="plain"), {**ROW, "turns": "[1]"})
