"""Cells: product, sweep, filters."""

import jsonschema
import pytest
import yaml

from cft_ray.errors import UserError
from cft_ray.grid.cells import cells
from cft_ray.grid.schema import grid_from_text, json_schema, load_grid

GRID = """\
name: g
storage: runs/g
seeds: [0, 1]
models:
  a: {base: {hub: org/a}, instruct: {hub: org/a-it, template: chat}}
  b: {base: {hub: org/b}}
datasets:
  en: {hub: org/en, format: alpaca, languages: [en]}
  multi: {hub: org/multi, format: alpaca, languages: [de], english: en}
pairs: [{phase1: en, phase2: multi}]
strategies: [none, LF_H1]
training: {learning_rate: 1e-5}
evaluation: {benchmarks: [ifeval]}
"""


def found(*sets):
    return cells(grid_from_text(GRID, "g.yaml", sets))


def settings(*sets):
    return [dict(cell.variant.settings) for cell in found(*sets)]


def test_product_in_the_files_order_and_names():
    assert [cell.name for cell in found()] == [
        "a/en→multi/none/0",
        "a/en→multi/none/1",
        "a/en→multi/LF_H1/0",
        "a/en→multi/LF_H1/1",
        "b/en→multi/none/0",
        "b/en→multi/none/1",
        "b/en→multi/LF_H1/0",
        "b/en→multi/LF_H1/1",
    ]


def test_list_is_swept_and_carried_in_the_name():
    swept = found("training.learning_rate=[1e-6, 1e-5]", "models={a: {base: {hub: x/y}}}", "seeds=[0]")
    assert [cell.name for cell in swept] == [
        "a/en→multi/none/0/training.learning_rate=1e-06",
        "a/en→multi/none/0/training.learning_rate=1e-05",
        "a/en→multi/LF_H1/0/training.learning_rate=1e-06",
        "a/en→multi/LF_H1/0/training.learning_rate=1e-05",
    ]
    assert [cell.variant.phase2.learning_rate for cell in swept] == [1e-6, 1e-5] * 2
    assert [cell.variant.phase1 and cell.variant.phase1.learning_rate for cell in swept] == [1e-6, 1e-5] * 2


def test_two_axes_multiply_and_a_single_value_is_no_axis():
    one = ["models={a: {base: {hub: x/y}}}", "seeds=[0]", "strategies=[none]"]
    assert settings(*one, "training.learning_rate=[1e-6, 1e-5]", "training.batch_size=[8, 16, 32]") == [
        {"training.learning_rate": rate, "training.batch_size": size} for rate in (1e-6, 1e-5) for size in (8, 16, 32)
    ]
    assert settings(*one, "training.learning_rate=[1e-6]") == [{}]


def test_strategys_own_axis_multiplies_that_strategy_alone():
    assert settings("strategies.LF_H1.layers=[1, 2]", "seeds=[0]", "models={a: {base: {hub: x/y}}}") == [
        {},
        {"strategy.layers": 1},
        {"strategy.layers": 2},
    ]


def test_setting_that_takes_a_list_is_swept_by_a_list_of_lists():
    base = ["models={a: {base: {hub: x/y}}}", "seeds=[0]"]
    one = found(*base, "strategies=[{name: LoRA, target_modules: [q_proj, v_proj]}]")
    assert [cell.variant.implementation.model_dump()["target_modules"] for cell in one] == [("q_proj", "v_proj")]
    two = found(*base, "strategies=[{name: LoRA, target_modules: [[q_proj], [q_proj, v_proj]]}]")
    assert [cell.variant.implementation.model_dump()["target_modules"] for cell in two] == [("q_proj",), ("q_proj", "v_proj")]


def test_nearer_settings_win_and_steps_replace_epochs():
    changed = found(
        "training={learning_rate: 1e-5, epochs: 3, phase1: {learning_rate: 2e-5}, phase2: {steps: 7}}",
        "strategies=[none, {name: LoRA, training: {learning_rate: 2e-4, epochs: 1}}]",
        "seeds=[0]",
        "models={a: {base: {hub: x/y}}}",
    )
    none, lora = (cell.variant for cell in changed)
    assert none.phase1 is not None
    assert (none.phase1.learning_rate, none.phase1.epochs, none.phase1.steps) == (2e-5, 3, None)
    assert (none.phase2.learning_rate, none.phase2.epochs, none.phase2.steps) == (1e-5, None, 7)
    assert (lora.phase2.learning_rate, lora.phase2.epochs, lora.phase2.steps) == (2e-4, 1, None)


def test_axis_that_a_cell_does_not_obey_does_not_double_it():
    instruct = ["pairs=[{phase1: instruct, phase2: multi}]", "models={a: {base: {hub: x/y}, instruct: {hub: x/z}}}", "seeds=[0]"]
    assert settings(*instruct, "training.phase1.learning_rate=[1e-6, 1e-5]") == [{}, {}]
    assert settings(
        *instruct, "training.learning_rate=[1e-6, 1e-5]", "strategies=[{name: LoRA, training: {learning_rate: 1e-4}}]"
    ) == [{}]


def test_filters_by_value_list_glob_and_setting():
    assert {cell.variant.model for cell in found("include=[{model: a}]")} == {"a"}
    assert [cell.name for cell in found("include=[{model: [a, b], strategy: 'LF_*', seed: 1}]")] == [
        "a/en→multi/LF_H1/1",
        "b/en→multi/LF_H1/1",
    ]
    assert len(found("exclude=[{model: a, strategy: none}]")) == 6
    rates = settings("training.learning_rate=[1e-6, 1e-5]", "include=[{settings: {training.learning_rate: 1e-5}}]")
    assert rates == [{"training.learning_rate": 1e-5}] * 8


def test_checkpoint_that_a_model_lacks_matters_only_where_it_is_used():
    pairs = "pairs=[{phase1: instruct, phase2: multi}]"
    with pytest.raises(UserError) as raised:
        found(pairs)
    assert raised.value.where == "g.yaml: pairs[0].phase1 (--set)"
    assert len(found(pairs, "exclude=[{model: b}]")) == 4


def test_json_schema_accepts_the_grids_and_refuses_a_wrong_key(repository):
    schema = json_schema()
    for path in sorted((repository / "grids").glob("*.yaml")):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
        load_grid(path)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(GRID.replace("learning_rate", "learning_rat")), schema)


def test_every_field_is_described():
    def undescribed(schema):
        for name, definition in [("Grid", schema), *schema["$defs"].items()]:
            for key, field in definition.get("properties", {}).items():
                if "description" not in field:
                    yield f"{name}.{key}"

    allowed = {"ScratchModel", "TrainingSettings", "ReplaySampling", "GenerationSettings"}  # named by themselves
    assert [name for name in undescribed(json_schema()) if name.partition(".")[0] not in allowed] == []


def test_a_sweep_that_only_the_bases_own_training_obeys_makes_cells():
    base = "models={a: {base: {scratch: {}, train: {data: en, training: {steps: 3}}}}}"
    fixed = "training={learning_rate: [1e-6, 1e-5], phase1: {learning_rate: 1e-4}, phase2: {learning_rate: 1e-3}}"
    cells = found(base, fixed, "seeds=[0]", "strategies=[none]")
    assert [cell.variant.given["base"].learning_rate for cell in cells] == [1e-6, 1e-5]
    assert [cell.variant.phase2.learning_rate for cell in cells] == [1e-3, 1e-3]
    # Where its training fixes the rate as well, nobody obeys the sweep: one cell.
    own = "models={a: {base: {scratch: {}, train: {data: en, training: {steps: 3, learning_rate: 1e-2}}}}}"
    assert [cell.variant.given["base"].learning_rate for cell in found(own, fixed, "seeds=[0]", "strategies=[none]")] == [1e-2]
