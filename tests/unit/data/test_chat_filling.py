"""A template's form: the same text as rendering, or none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cft_ray.data.chat_filling import Looked, form, literals

OPEN = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' or loop.first %}"
CLOSE = "{% else %}{{ m.content }}{% endif %}|{% endfor %}"
BLIND = {
    "as it is": "{{ m.content }}",
    "stripped": "{{ m['content'] | trim }}",
    "joined": "{{ ' ' + m.content + '!' }}",
    "by a name": "{% set content = m.content.strip() %}{{ content ~ '.' }}",
    "in a macro": "{% macro write(text) %}{{ text }}{% endmacro %}{{ write(m.content) }}",
}
LOOKING = {
    "a condition": "{{ 'x' if m.content else 'y' }}{{ m.content }}",
    "a search": "{{ m.content }}{% if 'secret' in m.content %}!{% endif %}",
    "a search in joined text": "{% set text = m.role ~ m.content %}{{ text }}{% if 'secret' in text %}!{% endif %}",
    "a part": "{{ m.content.split('</think>')[-1] }}",
    "a length": "{{ m.content }}{{ m.content | length }}",
    "a comparison": "{{ m.content }}{{ '!' if m.content == 'zebra' }}",
    "a replacement": "{{ (m.role ~ m.content) | replace('cat', 'dog') }}",
    "quotes": "{{ m.content | tojson }}",
    "upper case": "{{ m.content | upper }}",
    "other ends": "{{ m.content.strip('x') }}",
    "joined ends": "{{ (m.role ~ ' ' ~ m.content) | trim }}",
    "a slice": "{{ m.content[:50] }}",
    "twice": "{{ m.content }}{{ m.content }}",
    "not at all": "",
}


def render(source):
    template = ImmutableSandboxedEnvironment().from_string(source)

    def rendered(messages):
        try:
            return template.render(messages=messages)
        except (Looked, TemplateError):
            return None

    return rendered


@pytest.mark.parametrize("way", BLIND)
@given(contents=st.lists(st.text(), min_size=2, max_size=2))
@settings(max_examples=50, deadline=None)
def test_what_is_filled_in_is_what_is_rendered(way, contents):
    source = OPEN + BLIND[way] + CLOSE
    made = form(render(source), ("user", "assistant"), literals(source))
    assert made is not None
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=True)]
    pieces = made.pieces(contents)
    assert "".join(text for text, _ in pieces) == render(source)(messages)
    expected = [text.strip() if stripped else text for text, stripped in zip(contents, made.stripped, strict=True)]
    assert [text for text, literal in pieces if literal] == [text for text in expected if text]


@pytest.mark.parametrize("way", LOOKING)
def test_a_template_whose_text_depends_on_what_it_is_given_has_no_form(way):
    source = OPEN + LOOKING[way] + CLOSE
    assert form(render(source), ("user", "assistant"), literals(source)) is None
    # Where the place that looks is not reached, there is one.
    assert (
        form(render(source.replace("or loop.first", "and false").replace("m.role == 'user'", "false")), ("user",), ()) is not None
    )


def test_the_texts_that_a_template_names():
    assert literals("{{ 'a\\n' }}{% if x == \"b'c\" %}d{% endif %}{# 'e' #}") == ["a\n", "b'c"]
