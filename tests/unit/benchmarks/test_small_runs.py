"""What the benchmarks of small grids compute from what they ran."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import demo
import toy_seeds

from cft_ray.grid.schema import load_grid
from cft_ray.plan.build import build


@pytest.mark.parametrize(("shown", "seconds"), [("42s", 42), ("3m07s", 187), ("2h05m", 7500)])
def test_durations_are_read_as_they_are_shown(shown, seconds):
    from cft_ray.execute.progress import _duration

    assert demo.seconds_of(shown) == seconds and _duration(seconds) == shown


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("[1m05s] done: finetune a in 9s  (3 of 63, about 1m40s left)", "1m40s"),
        ("[5s] running: dataset a  (1 of 63, time left unknown)", None),
        ("[1m05s] failed: a in 9s: because  (3 of 63, 2 failed or skipped, about 9s left)", "9s"),
    ],
)
def test_the_time_left_is_found_in_a_line(line, left):
    found = demo.LEFT.search(line)
    assert found is not None and found["left"] == left


def test_the_time_left_is_judged_between_a_fifth_and_the_end():
    shown = [(10.0, None), (20.0, 999.0), (40.0, 70.0), (60.0, None), (100.0, 5.0), (109.0, 50.0), (110.0, None)]
    figures = demo.time_left(demo.Run(seconds=115, peak_bytes=1, processes=1, shown=shown))
    assert (figures["judged"], figures["unknown"]) == (3, 1)  # at 40, 60 and 100 of 10 to 110
    assert figures["worst_error"] == 0.5 and figures["within_a_quarter"] == 0.5
    assert figures["known_from_share"] == 0.5


def test_every_drawn_stage_gets_the_seed_and_the_data_stay(repository):
    plan = build(load_grid(repository / "grids" / "smoke.yaml"))
    assert list(toy_seeds.reseeded(plan, 0).stages) == list(plan.stages)
    other = toy_seeds.reseeded(plan, 7)
    assert len(other.stages) == len(plan.stages)
    kept = set(plan.stages) & set(other.stages)
    assert {plan.stages[key].kind for key in kept} == {"dataset"}
    assert {stage.spec.seed for stage in other.stages.values() if stage.kind in ("finetune", "replay")} == {7}
    assert all(source in other.stages for stage in other.stages.values() for source in stage.inputs.values())
    assert all(key in other.stages for cell in other.cells for key in cell.roles.values())


def test_intervals_are_students():
    """By hand: mean 3, deviation √2.5; with five values the quantile of Student's t is 2.776."""
    found = toy_seeds.spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found == pytest.approx({"mean": 3, "least": 1, "greatest": 5, "sd": 1.5811, "interval": 1.9629}, abs=1e-3)
    assert "sd" not in toy_seeds.spread([1.0])


def test_strategies_are_compared_within_a_seed():
    def cells(none: float, replay: float) -> dict[str, dict[str, float]]:
        return {name: dict.fromkeys(toy_seeds.SCORES, value) for name, value in (("m p none", none), ("m p GR_10", replay))}

    by_seed = {0: cells(0.1, 0.5), 1: cells(0.3, 0.7)}
    figures = toy_seeds.compared(by_seed, {"native": by_seed[0], "avx2": cells(0.15, 0.5)})
    replay = figures["m p GR_10"]["ta_phase2"]
    assert replay["over_none"]["mean"] == 0.4 and replay["over_none"]["sd"] == 0 and replay["over_seeds"]["mean"] == 0.6
    assert figures["m p none"]["ta_phase2"]["range_over_instruction_sets"] == 0.05
    assert "| m p none | 0.20 ±" in toy_seeds.table(figures)


@pytest.mark.parametrize("grid", demo.GRIDS.values(), ids=lambda grid: grid.name)
def test_the_grids_that_are_measured_can_be_planned(repository, grid):
    assert build(load_grid(repository / grid.path, grid.sets)).cells
