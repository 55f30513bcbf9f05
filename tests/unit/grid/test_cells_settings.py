"""What each cell is trained with: layers of settings, what is swept, and what too many cells or a wrong batch are said to be."""

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.cells import Cell, Variant, cell_name, cells
from cft_ray.grid.schema import grid_from_text

GRID = """\
name: g
storage: runs/g
models:
  a:
    base: {scratch: {}, train: {data: en, training: {steps: 3}}}
    instruct: {hub: org/a-it}
datasets:
  en: {toy: alpaca, languages: [en]}
  other: {toy: mixture, languages: [en]}
  multi: {toy: multialpaca, languages: [de], english: en}
pairs: [{phase1: en, phase2: multi}]
strategies: [none]
training: {learning_rate: 1e-5}
evaluation: {benchmarks: [toy_letters]}
"""
INSTRUCT = "pairs=[{phase1: instruct, phase2: multi}]"


def found(*sets: str) -> list[Cell]:
    return cells(grid_from_text(GRID, "g.yaml", sets))


def variants(*sets: str) -> list[Variant]:
    return [cell.variant for cell in found(*sets)]


def refused(*sets: str) -> UserError:
    with pytest.raises(UserError) as raised:
        found(*sets)
    return raised.value


def test_a_name_holds_each_swept_value():
    assert cell_name("a/en→multi/none", 3, {}) == "a/en→multi/none/3"
    assert cell_name("v", 0, {"training.steps": 5, "replay.top_p": 0.9}) == "v/0/training.steps=5/replay.top_p=0.9"


def test_the_base_is_tuned_as_in_phase_1_whether_or_not_phase_1_is_trained():
    [trained] = variants("training={learning_rate: 1e-5, phase1: {steps: 7}, phase2: {steps: 9}}")
    assert trained.phase1 is not None and trained.phase1.steps == trained.tuning.steps == 7
    assert (trained.phase2.steps, trained.phase2.epochs) == (9, None)
    [given] = variants(INSTRUCT, "training={learning_rate: 1e-5, phase1: {steps: 7}, phase2: {steps: 9}}")
    assert given.phase1 is None and given.tuning.steps == 7 and given.phase2.steps == 9


def test_of_what_a_cell_does_not_sweep_the_base_is_tuned_with_the_first_value():
    [given] = variants(INSTRUCT, "training={learning_rate: 1e-5, phase1: {batch_size: [4, 8]}}")
    assert given.settings == {} and given.tuning.batch_size == 4 and given.phase2.batch_size == 16
    both = "training={batch_size: [4, 8], phase2: {batch_size: 2}}"
    [given] = variants(INSTRUCT, both, "models.a.base.train.training.batch_size=32")
    assert given.settings == {} and given.tuning.batch_size == 4 and given.phase2.batch_size == 2
    assert given.given["base"].batch_size == 32


def test_a_sweep_is_obeyed_by_whichever_training_does_not_fix_the_setting():
    own = "models.a.base.train.training.batch_size=32"
    for fixed, phase1, phase2 in (
        ("{batch_size: [4, 8], phase1: {batch_size: 2}}", [2, 2], [4, 8]),
        ("{batch_size: [4, 8], phase2: {batch_size: 2}}", [4, 8], [2, 2]),
        ("{batch_size: [4, 8]}", [4, 8], [4, 8]),
    ):
        got = variants(own, f"training={fixed}")
        assert [variant.phase1 and variant.phase1.batch_size for variant in got] == phase1
        assert [variant.phase2.batch_size for variant in got] == phase2
        assert [variant.settings for variant in got] == [{"training.batch_size": 4}, {"training.batch_size": 8}]
    [one] = variants(own, "training={batch_size: [4, 8], phase1: {batch_size: 2}, phase2: {batch_size: 1}}")
    assert one.settings == {} and one.phase1 is not None and (one.phase1.batch_size, one.phase2.batch_size) == (2, 1)


def test_a_sweep_is_obeyed_where_one_of_several_given_trainings_leaves_it_open():
    own = "models.a.instruct={start: base, train: {data: en, training: {steps: 2, batch_size: 64}}}"
    got = variants(own, "training={batch_size: [4, 8], phase1: {batch_size: 2}, phase2: {batch_size: 1}}")
    assert [(each.given["base"].batch_size, each.given["instruct"].batch_size) for each in got] == [(4, 64), (8, 64)]


def test_a_phases_sweep_takes_the_place_of_the_one_for_all():
    own = "models.a.base.train.training.batch_size=32"
    got = variants(own, "training={batch_size: [4, 8], phase1: {batch_size: [1, 2]}, phase2: {batch_size: [16, 32]}}")
    assert [variant.settings for variant in got] == [
        {"training.phase1.batch_size": one, "training.phase2.batch_size": two} for one in (1, 2) for two in (16, 32)
    ]
    assert [(variant.phase1 and variant.phase1.batch_size, variant.phase2.batch_size) for variant in got] == [
        (1, 16), (1, 32), (2, 16), (2, 32),
    ]  # fmt: skip


def test_a_strategys_own_training_counts_in_phase_2_alone():
    fixed = "strategies=[{name: LoRA, training: {batch_size: 2}}]"
    got = variants(fixed, "training={batch_size: 4, phase2: {batch_size: [16, 32]}}")
    assert [(variant.settings, variant.phase2.batch_size) for variant in got] == [({}, 2)]
    assert got[0].phase1 is not None and got[0].phase1.batch_size == 4
    swept = "strategies=[{name: LoRA, rank: [4, 8], training: {batch_size: [2, 3]}}]"
    got = variants(swept, "training={batch_size: [4, 8], phase1: {batch_size: 1}, phase2: {batch_size: [16, 32]}}",
                   "models.a.base.train.training.batch_size=5")  # fmt: skip
    assert [variant.settings for variant in got] == [
        {"strategy.rank": rank, "strategy.training.batch_size": size} for rank in (4, 8) for size in (2, 3)
    ]
    assert [variant.phase2.batch_size for variant in got] == [2, 3, 2, 3]
    assert [variant.implementation.model_dump()["rank"] for variant in got] == [4, 4, 8, 8]
    assert got[0].implementation is got[1].implementation  # the same settings are looked at once


def test_replays_sampling_is_swept_and_shared():
    got = variants("replay={top_p: [0.5, 1.0], temperature: 0.7}", "seeds=[0, 1]")
    assert [(variant.sampling.top_p, variant.sampling.temperature) for variant in got] == [(0.5, 0.7)] * 2 + [(1.0, 0.7)] * 2
    assert variants()[0].sampling.temperature == 1.0


@pytest.mark.parametrize(
    ("outer", "inner", "length"),
    [
        ("{steps: 5}", "{}", (5, None)),
        ("{epochs: 2}", "{}", (None, 2)),
        ("{steps: 5}", "{epochs: 2}", (None, 2)),
        ("{epochs: 2}", "{steps: 5}", (5, None)),
        ("{steps: 5}", "{steps: 6}", (6, None)),
        ("{}", "{}", (None, 4)),
    ],
)
def test_the_nearest_length_of_a_training_counts(outer, inner, length):
    [variant] = variants(f"training={outer}", f"training.phase2={inner}")
    assert (variant.phase2.steps, variant.phase2.epochs) == length


@pytest.mark.parametrize(
    ("batch", "workers", "nearest"), [(8, 3, "e.g. 6;"), (2, 3, "e.g. 3;"), (7, 2, "e.g. 6;"), (9, 4, "e.g. 8;")]
)
def test_a_batch_is_split_evenly(batch, workers, nearest):
    sets = (f"resources={{finetune: {{workers: {workers}}}}}", "models.a.base={hub: org/a}")
    error = refused(*sets, f"training.batch_size={batch}")
    assert error.where == "g.yaml: training.batch_size (--set)" and nearest in str(error.fix)
    assert len(found(*sets, f"training.batch_size={2 * workers}")) == 1
    # The place is the one whose value counts, or that of the workers where the batch is the default.
    assert refused(*sets, f"training={{batch_size: 12, phase2: {{batch_size: {batch}}}}}").where == (
        "g.yaml: training.phase2.batch_size (--set)"
    )
    if 16 % workers:
        assert refused(*sets).where == "g.yaml: resources.finetune.workers (--set)"


def test_a_length_given_twice_is_named_where_it_is_nearest():
    assert refused("training={steps: 5, epochs: 2}").where == "g.yaml: training (--set)"
    assert refused("training.phase2={steps: 5, epochs: 2}").where == "g.yaml: training.phase2 (--set)"
    assert refused("training.phase1={steps: 5, epochs: 2}").where == "g.yaml: training.phase1 (--set)"
    own = "strategies=[{name: LoRA, training: {steps: 5, epochs: 2}}]"
    assert refused(own).where == "g.yaml: strategies[0].training (--set)"
    assert refused("models.a.base.train.training={steps: 5, epochs: 2}").where == "g.yaml: models.a.base.train.training (--set)"


def test_a_phase_is_a_mapping():
    assert refused("training.phase2=[1]").where == "g.yaml: training.phase2 (--set)"


@pytest.mark.parametrize(
    ("sets", "count", "where"),
    [
        (["seeds=[0, 1, 2, 3, 4]"], 5, "seeds"),
        (["training.batch_size=[1, 2, 3]", "seeds=[0, 1]"], 6, "training.batch_size"),
        (["training.phase2={batch_size: [1, 2, 3]}", "seeds=[0, 1]"], 6, "training.phase2.batch_size"),
        (["replay={top_p: [0.1, 0.2, 0.3]}", "seeds=[0, 1]"], 6, "replay.top_p"),
        (["strategies=[none, {name: LoRA, rank: [1, 2, 3, 4]}]"], 5, "strategies[1].rank"),
        (["strategies=[{name: LoRA, training: {batch_size: [1, 2, 3, 4]}}]"], 4, "strategies[0].training.batch_size"),
        (["strategies=[none, LF_H1, LF_H2, LoRA]"], 4, "strategies"),
        (["pairs=[{phase1: en, phase2: multi}, {phase1: other, phase2: multi}, {phase1: instruct, phase2: multi}]"], 3, "pairs"),
    ],
    ids=lambda item: item if isinstance(item, str) else None,
)  # fmt: skip
def test_more_cells_than_are_allowed(sets, count, where):
    assert len(found(*sets, f"max_cells={count}")) == count
    error = refused(*sets, f"max_cells={count - 1}")
    assert error.what.startswith(f"the grid has {count} cells (1 models × ") and error.what.endswith(f", more than {count - 1}")
    assert error.where == f"g.yaml: {where} (--set)"


def test_what_makes_the_cells_many_is_counted():
    error = refused(
        "seeds=[0, 1]", "training.batch_size=[1, 2, 3]", "strategies=[none, {name: LoRA, rank: [1, 2]}]", "max_cells=1"
    )
    assert error.what == (
        "the grid has 18 cells (1 models × 1 pairs × 2 strategies × 2 seeds × 3 values of training.batch_size × "
        "2 values of strategy.rank), more than 1"
    )


def test_what_two_strategies_sweep_can_be_filtered_by_either_value():
    strategies = "strategies=[{name: LoRA, rank: [1, 2]}, {name: wide, use: LoRA, rank: [3, 4]}]"
    for rank in (1, 2, 3, 4):
        [cell] = found(strategies, f"include=[{{settings: {{strategy.rank: {rank}}}}}]")
        assert cell.variant.settings == {"strategy.rank": rank}
    error = refused(strategies, "include=[{settings: {strategy.rank: 5}}]")
    assert error.where == "g.yaml: include[0].settings.strategy.rank (--set)" and error.fix == "one of 1, 2, 3, 4"


@pytest.mark.parametrize(
    ("path", "section"),
    [
        ("training.batch_size", "training={batch_size: [4, 8]}"),
        ("training.phase1.batch_size", "training={phase1: {batch_size: [4, 8]}}"),
        ("training.phase2.batch_size", "training={phase2: {batch_size: [4, 8]}}"),
        ("replay.max_length", "replay={max_length: [4, 8]}"),
        ("strategy.rank", "strategies=[{name: LoRA, rank: [4, 8]}]"),
        ("strategy.training.batch_size", "strategies=[{name: LoRA, training: {batch_size: [4, 8]}}]"),
    ],
    ids=lambda item: item.partition("=")[0],
)
def test_every_sweep_can_be_filtered(path, section):
    for value in (4, 8):
        [cell] = found(section, f"include=[{{settings: {{{path}: {value}}}}}]")
        assert cell.variant.settings == {path: value}
    assert len(found(section, f"exclude=[{{settings: {{{path}: 4}}}}]")) == 1
