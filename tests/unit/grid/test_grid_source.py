"""YAML 1.2's types, and what --set changes."""

import pytest

from cft_ray.grid.source import parse
from cft_ray.grid.tree import Source, dotted


def values(text, *sets):
    return parse(text, Source("x.yaml"), sets)[0]


def test_yaml_12_types():
    text = "a: no\nb: 1e-5\nc: true\nd: 010\ne: 1:30\nf: ~\ng: 2024-01-01\nh: .5\ni: none\n2024: x\nj: '1'\n"
    assert values(text) == {
        "a": "no",
        "b": 1e-5,
        "c": True,
        "d": 10,
        "e": "1:30",
        "f": None,
        "g": "2024-01-01",
        "h": 0.5,
        "i": "none",
        "2024": "x",
        "j": "1",
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("training.learning_rate=1e-5", {"training": {"learning_rate": 1e-5, "x": 1}}),
        ("training.x=[1, 2]", {"training": {"x": [1, 2]}}),
        ("strategies.LoRA.rank=8", {"strategies": ["none", {"name": "LoRA", "rank": 8}]}),
        ("strategies.none.training.steps=3", {"strategies": [{"name": "none", "training": {"steps": 3}}, {"name": "LoRA"}]}),
        ("pairs[1].phase1=c", {"pairs": [{"phase1": "a"}, {"phase1": "c"}]}),
        ("pairs.0.phase1=c", {"pairs": [{"phase1": "c"}, {"phase1": "b"}]}),
        ("models.llama-3.1.base.hub=x/y", {"models": {"llama-3.1": {"base": {"hub": "x/y"}}}}),
        ("resources.finetune.workers=2", {"resources": {"finetune": {"workers": 2}}}),
        ("template=", {"template": None}),
        ("name=a=b", {"name": "a=b"}),
    ],
)
def test_set(change, expected):
    text = (
        "training: {x: 1}\nstrategies: [none, {name: LoRA}]\npairs: [{phase1: a}, {phase1: b}]\n"
        "models: {llama-3.1: {base: {hub: a/b}}}\n"
    )
    before = values(text)
    assert values(text, change) == before | expected


def test_aliases_are_copies():
    changed = values("a: &x {k: 1}\nb: *x\n", "b.k=2")
    assert changed == {"a": {"k": 1}, "b": {"k": 2}}


def test_dotted():
    assert dotted(("pairs", 0, "phase1")) == "pairs[0].phase1"
