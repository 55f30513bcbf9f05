"""A text without a context is scored in the tokens that its tokenizer makes of it, and a choice in those that were taught."""

from typing import Any

import pytest
from lm_eval.api.instance import Instance
from madetokenizers import FAMILIES, tokenizer

from cft_ray.data.encoding import Encoder
from cft_ray.evaluation.templated import Templated
from cft_ray.grid.settings import Template


class Scored(Templated):
    """Gives each text its number of tokens, and keeps them."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.tokenizer, self.max_length, self.prefix_token_id = tokenizer(family), 100, 1
        self.scored: list[tuple[list[int], list[int]]] = []

    def _loglikelihood_tokens(self, requests: Any) -> list[tuple[float, bool]]:
        self.scored = [(context, continuation) for _, context, continuation in requests]
        return [(float(len(continuation)), False) for _, continuation in self.scored]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_text_is_scored_from_its_first_token(family):
    model = Scored(family)
    text = "Hello there, world."
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    (total,) = model.loglikelihood_rolling([request])
    expected = tokenizer(family)(text, add_special_tokens=False).input_ids
    ((context, continuation),) = model.scored
    assert (context, continuation) == ([1], expected) and total == len(expected)


@pytest.mark.parametrize("template", ["alpaca", "plain", "toy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_choice_is_scored_in_the_tokens_that_are_taught(family, template):
    model = Scored(family)
    model.template = Template(name=template)
    asked = model.apply_chat_template([{"role": "user", "content": "Say hello"}])
    context, continuation = model._encode_pair(asked, "Hello")
    (row,) = Encoder(tokenizer(family), model.template).rows([{"instruction": "Say hello", "output": "Hello"}])
    assert [*context, *continuation] == row.ids[:-1] and len(context) == row.prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_text_is_taught_in_the_tokens_that_its_tokenizer_makes_of_it(family):
    (row,) = Encoder(tokenizer(family), Template(name="plain")).rows([{"instruction": "", "output": "Hello there"}])
    whole = tokenizer(family)("Hello there").input_ids
    assert row.ids[:-1] == whole[: len(row.ids) - 1]
