"""Which cells a grid's `include` and `exclude` keep."""

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.cells import cells
from cft_ray.grid.schema import grid_from_text

GRID = """\
name: g
storage: runs/g
seeds: [0, 1, 10]
models:
  a: {base: {hub: org/a}, instruct: {hub: org/a-it}}
  b: {base: {hub: org/b}, instruct: {hub: org/b-it}}
datasets:
  en: {toy: alpaca, languages: [en]}
  multi: {toy: multialpaca, languages: [de], english: en}
  more: {toy: multialpaca, languages: [es], english: en}
pairs: [{phase1: en, phase2: multi}, {phase1: instruct, phase2: more}]
strategies: [none, LF_H1]
training: {batch_size: [4, 8]}
evaluation: {benchmarks: [toy_letters]}
"""


def names(*sets: str) -> list[str]:
    return [cell.name for cell in cells(grid_from_text(GRID, "g.yaml", sets))]


ALL = names()


def refused(*sets: str) -> UserError:
    with pytest.raises(UserError) as raised:
        names(*sets)
    return raised.value


@pytest.mark.parametrize(
    ("item", "part"),
    [
        ("model: a", lambda name: name.startswith("a/")),
        ("model: [a, b]", lambda name: True),
        ("model: '?'", lambda name: True),
        ("phase1: en", lambda name: "/en→" in name),
        ("phase2: more", lambda name: "→more/" in name),
        ("phase2: 'm*i'", lambda name: "→multi/" in name),
        ("strategy: 'LF_*'", lambda name: "/LF_H1/" in name),
        ("strategy: '[a-z]*'", lambda name: "/none/" in name),
        ("seed: 1", lambda name: "/1/" in name),
        ("seed: [0, 10]", lambda name: "/0/" in name or "/10/" in name),
        ("seed: '1*'", lambda name: "/1/" in name or "/10/" in name),
        ("settings: {training.batch_size: 8}", lambda name: name.endswith("=8")),
        ("settings: {training.batch_size: [4, 8]}", lambda name: True),
        ("model: b, strategy: none, seed: 0", lambda name: name.startswith("b/") and "/none/0/" in name),
        ("phase1: instruct, settings: {training.batch_size: 4}", lambda name: "/instruct→" in name and name.endswith("=4")),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)  # fmt: skip
def test_an_item_names_the_cells_that_have_all_it_says(item, part):
    assert names(f"include=[{{{item}}}]") == [name for name in ALL if part(name)]
    rest = [name for name in ALL if not part(name)]
    if rest:
        assert names(f"exclude=[{{{item}}}]") == rest
    else:
        error = refused(f"exclude=[{{{item}}}]")
        assert error.what == "no cell is left by the filters" and error.where == "g.yaml: exclude (--set)"


def test_items_of_a_list_add_up_and_exclude_goes_last():
    both = names("include=[{model: a}, {seed: 0}]")
    assert both == [name for name in ALL if name.startswith("a/") or "/0/" in name]
    assert names("exclude=[{model: a}, {seed: 0}]") == [name for name in ALL if not name.startswith("a/") and "/0/" not in name]
    assert names("include=[{model: a}]", "exclude=[{seed: 0}, {strategy: none}]") == [
        name for name in ALL if name.startswith("a/") and "/0/" not in name and "/LF_H1/" in name
    ]
    nothing = refused("include=[{model: a}]", "exclude=[{model: a}]")
    assert nothing.what == "no cell is left by the filters" and nothing.where == "g.yaml: include (--set)"


def test_a_model_that_no_cell_needs_may_lack_the_checkpoint():
    lacks = "models.b={base: {hub: org/b}}"
    assert refused(lacks).where == "g.yaml: pairs[1].phase1 (line 11)"
    assert len(names(lacks, "exclude=[{model: b, phase1: instruct}]")) == 36
    assert len(names(lacks, "include=[{model: a}, {model: b, phase1: en}]")) == 36


@pytest.mark.parametrize(
    ("section", "items", "place", "what", "fix"),
    [
        ("include", "{model: a}, {phase1: en, phase2: more}", "[1]", "no cell is like this", "mend it, or take it out"),
        ("exclude", "{phase1: en, phase2: more}, {model: a}", "[0]", "no cell is like this", "mend it, or take it out"),
        ("exclude", "{settings: {training.steps: 4}}", "[0].settings.training.steps", "'training.steps' is not swept", None),
        ("exclude", "{settings: {training.batch_size: 5}}", "[0].settings.training.batch_size",
         "training.batch_size is never 5", "one of 4, 8"),
        ("exclude", "{settings: {training.batch_size: [5, 6]}}", "[0].settings.training.batch_size",
         "training.batch_size is never [5, 6]", "one of 4, 8"),
        ("exclude", "{phase1: en, phase2: more, settings: {training.batch_size: [5, 8]}}", "[0]", "no cell is like this", None),
    ],
)  # fmt: skip
def test_an_item_that_no_cell_is_like(section, items, place, what, fix):
    error = refused(f"{section}=[{items}]")
    assert error.where == f"g.yaml: {section}{place} (--set)" and error.what == what
    assert fix is None or error.fix == fix


def with_filters(filters: str, *sets: str) -> list[str]:
    return [cell.name for cell in cells(grid_from_text(f"{GRID}{filters}\n", "g.yaml", sets))]


def test_a_files_filter_may_speak_of_what_the_command_line_takes_away():
    only_none = [name for name in ALL if "/none/" in name]
    assert with_filters("exclude: [{model: b, strategy: LF_H1}]", "strategies=[none]") == only_none
    assert with_filters("include: [{strategy: none}, {strategy: LF_*}]", "strategies=[none]") == only_none
    one_size = with_filters("exclude: [{settings: {training.batch_size: 8}}]", "training.batch_size=4")
    assert one_size == sorted({name.rpartition("/training.batch_size")[0] for name in ALL}, key=one_size.index)
    with pytest.raises(UserError, match="no cell is left"):
        with_filters("exclude: [{strategy: none}]", "strategies=[none]")


@pytest.mark.parametrize("section", ["include", "exclude"])
def test_a_files_filter_that_is_wrong_by_itself_is_refused_beside_any_change(section):
    with pytest.raises(UserError, match="there is no strategy 'LF_H9'") as raised:
        with_filters(f"{section}: [{{model: a}}, {{strategy: LF_H9}}]", "seeds=[1]")
    assert raised.value.where == f"g.yaml: {section}[1].strategy (line 15)"
    # One that the command line gives has to fit the grid as the command line makes it.
    with pytest.raises(UserError, match="there is no strategy 'LF_H1'"):
        with_filters("", "strategies=[none]", f"{section}=[{{model: a}}, {{strategy: LF_H1}}]")
