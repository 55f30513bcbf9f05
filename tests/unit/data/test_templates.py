import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from cft_ray.data.templates import prompt, render
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template

ROW = {"id": "1", "language": "en", "system": "", "instruction": "Add.", "input": "1 2", "output": "3"}

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)


def tokenizer(chat_template: str | None, eos: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, eos: 1}, eos)), bos_token="<s>", eos_token=eos
    )
    made.chat_template = chat_template
    return made


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
    assert render(Template(name="plain"), ROW) == ("Add.\n\n1 2\n\n", "3")
    assert render(Template(name="plain"), {**ROW, "system": "S", "input": ""}) == ("S\n\nAdd.\n\n", "3")


def test_toy_is_compact_and_ends_in_no_white_space() -> None:
    assert render(Template(name="toy"), ROW) == ("Add.: 1 2 =", "3")
    assert prompt(Template(name="toy"), {**ROW, "system": "S", "input": ""}) == "S\nAdd. ="


@pytest.mark.parametrize("template", [Template(name="plain"), Template(name="toy")])
def test_plain_text_rows_have_no_prompt(template: Template) -> None:
    assert render(template, {**ROW, "instruction": "", "input": ""}) == ("", "3")


def test_chat_drops_the_beginning_token_and_the_end_token() -> None:
    question, answer = render(Template(name="chat"), ROW, tokenizer(MISTRAL, "</s>"))
    assert (question, answer) == ("[INST] Add.\n\n1 2 [/INST]", " 3")


def test_chat_prompt_and_answer_are_the_whole_conversation() -> None:
    made = tokenizer(LLAMA3, "<|eot|>")
    row = {**ROW, "system": "S"}
    question, answer = render(Template(name="chat"), row, made)
    assert question == "<|start|>system<|end|>\n\nS<|eot|><|start|>user<|end|>\n\nAdd.\n\n1 2<|eot|><|start|>assistant<|end|>\n\n"
    assert answer == "3"
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Add.\n\n1 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert "<s>" + question + answer + "<|eot|>" == made.apply_chat_template(turns, tokenize=False)


def test_chat_keeps_an_end_of_turn_that_is_not_the_end_token() -> None:
    _, answer = render(Template(name="chat"), ROW, tokenizer(LLAMA3, "</s>"))
    assert answer == "3<|eot|>"


def test_chat_template_without_system_role_gets_it_in_the_users_turn() -> None:
    text = prompt(Template(name="chat", system="Be brief."), ROW, tokenizer(MISTRAL, "</s>"))
    assert text == "[INST] Be brief.\n\nAdd.\n\n1 2 [/INST]"


def test_chat_needs_a_chat_template() -> None:
    with pytest.raises(UserError, match="no chat template"):
        prompt(Template(name="chat"), ROW)
    with pytest.raises(UserError, match="no chat template"):
        prompt(Template(name="chat"), ROW, tokenizer(None, "</s>"))
