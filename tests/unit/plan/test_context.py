"""Answers that cannot fit are refused by the plan; a benchmark's own that are too long are named."""

import json

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.schema import grid_from_text
from cft_ray.plan.build import build
from cft_ray.plan.view import view

GRID = """\
name: g
storage: {{uri: {root}/runs}}
models:
  tiny:
    base: {{scratch: {{max_positions: 512}}, train: {{data: en, training: {{steps: 1}}}}}}
{more}
datasets:
  en: {{toy: alpaca, languages: [en]}}
  de: {{toy: multialpaca, languages: [de], english: en}}
pairs: [{{phase1: en, phase2: de}}]
strategies: [none]
template: toy
training: {{steps: 1, epochs: null}}
evaluation: {{benchmarks: [toy_letters, mmlu, {{name: ifeval, generation: {{max_length: 2048}}}}]}}
"""


def planned(tmp_path, *changes, more=""):
    grid = grid_from_text(GRID.format(root=tmp_path, more=more), "g.yaml", changes)
    return view(build(grid), grid, []).warnings


def test_a_benchmarks_own_length_is_a_note(tmp_path):
    (note,) = [text for text in planned(tmp_path) if "answers" in text]
    assert all(part in note for part in ("ifeval", "1280", "tiny", "512"))
    assert not [text for text in planned(tmp_path, "models.tiny.base.scratch.max_positions=1281") if "answers" in text]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("evaluation.generation.max_new_tokens=512", "evaluation.generation.max_new_tokens"),
        ("evaluation.generation.max_new_tokens=600", "evaluation.generation.max_new_tokens"),
        ("evaluation.benchmarks.ifeval.generation.max_new_tokens=513", "ifeval"),
    ],
)
def test_answers_longer_than_the_context_are_refused(tmp_path, change, where):
    with pytest.raises(UserError) as caught:
        planned(tmp_path, change)
    assert "512" in str(caught.value) and where in str(caught.value)


def test_one_less_than_the_context_is_planned(tmp_path):
    assert not [text for text in planned(tmp_path, "evaluation.generation.max_new_tokens=511") if "answers" in text]


def test_max_length_bounds_where_no_model_does(tmp_path):
    change = ["evaluation.generation={max_new_tokens: 200, max_length: 200}"]
    with pytest.raises(UserError, match="max_length"):
        planned(tmp_path, *change)


@pytest.mark.parametrize("values", [{"max_position_embeddings": 64}, {"text_config": {"max_position_embeddings": 64}}])
def test_a_local_models_positions_count(tmp_path, values):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes(b"")
    more = f"  other:\n    base: {{path: {folder}}}"
    with pytest.raises(UserError, match=r"other.*64"):
        planned(tmp_path, "evaluation.generation.max_new_tokens=64", more=more)
    notes = [text for text in planned(tmp_path, more=more) if "answers" in text]
    assert [("ifeval" in text, "other" in text and "64" in text) for text in notes] == [(True, True)]
