"""What stands in the figures: the planted numbers, a curve for each strategy, dots where slices were frozen."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from insightgrid import DES, GRID, LANGUAGES, Shape, plant
from matplotlib.figure import Figure
from typer.testing import CliRunner

import cft_ray
from cft_ray.cli import app
from cft_ray.errors import UserError
from cft_ray.report import write as writing
from cft_ray.report.correlation import PREDICTORS, correlations
from cft_ray.report.figures import des, drift, forgetting, languages, layer_means, style, tsne, variance
from cft_ray.report.tables import NothingToDraw, gather, grids
from cft_ray.report.write import write


def curves(canvas: Figure, panel: int) -> dict[str, np.ndarray]:
    """Colour -> [2, points] of the lines in a panel."""
    return {str(line.get_color()): np.asarray(line.get_data()) for line in canvas.axes[panel].get_lines()}


def names(canvas: Figure) -> list[str]:
    return [text.get_text() for legend in canvas.legends for text in legend.get_texts()]


def test_figure_2_has_a_curve_per_pair_with_the_planted_values(planted) -> None:
    canvas = variance.draw_pairs(planted(Shape(pairs=2, strategies=("none", "GR_10"))))["figure_2_variance"]
    assert names(canvas) == ["letters→multi-letters", "instruct→multi-letters"]
    frobenius, spectral = curves(canvas, 0), curves(canvas, 1)
    assert len(frobenius) == len(spectral) == 2
    drift_of_first = 2 * (1 - DES["letters", "multi-letters"])
    layers, values = frobenius[style.COLOURS[0]]
    assert layers.tolist() == [0, 1, 2, 3]
    assert values == pytest.approx(4 * drift_of_first * (1 + np.arange(4)) ** 1.5)
    assert spectral[style.COLOURS[0]][1] == pytest.approx(values * 2.5 / 4)


def test_figure_d4_has_a_curve_per_strategy_and_the_mean_over_seeds(planted) -> None:
    strategies = ("none", "LF_H1", "LF_H2", "GR_5", "GR_10", "LoRA", "ER_10")
    drawn = variance.draw_strategies(planted(Shape(pairs=1, strategies=strategies, seeds=(0, 1))))
    assert set(drawn) == {"figure_d4_variance_frobenius", "figure_d4_variance_spectral"}
    canvas = drawn["figure_d4_variance_frobenius"]
    assert names(canvas) == list(strategies)
    lines = curves(canvas, 0)
    assert len(lines) == len(strategies)
    drifts = 2 * (1 - 0.93) + 0.02 * np.array([0, 1])  # planted: the second seed drifts further
    assert lines[style.COLOURS[0]][1][0] == pytest.approx(4 * drifts.mean())
    assert len(canvas.axes[0].collections) == len(strategies)  # the bands over seeds


def test_figure_1_shows_each_model_once(planted) -> None:
    canvas = layer_means.draw(planted(Shape(pairs=2, layers=4)))["figure_1_layer_means"]
    assert names(canvas) == [
        "base",
        "after Phase 1: letters",
        "after Phase 2: letters→multi-letters",
        "after Phase 1: instruct",
        "after Phase 2: instruct→multi-letters",
    ]
    assert [len(line.get_xdata()) for line in canvas.axes[0].get_lines()] == [4] * 5  # type: ignore[arg-type]


def test_figure_d3_has_every_language_in_every_panel(planted) -> None:
    drawn = languages.draw(planted(Shape(pairs=2, layers=3)))
    canvas = drawn["figure_d3_languages_mistral-toy"]
    assert len(canvas.axes) == 2 * 3  # pairs × base, Phase 1, Phase 2
    assert all(len(axes.get_lines()) == len(LANGUAGES) for axes in canvas.axes)
    assert names(canvas)[: len(LANGUAGES)] == ["en", "de", "es", "ru", "sw"]


def test_drift_marks_what_the_trainings_say_they_froze(planted) -> None:
    tables = planted(Shape(pairs=1, strategies=("none", "LF_H1", "LF_H2"), layers=6, heads=4, kv_heads=2))
    canvas = drift.draw(tables)["drift_mistral-toy_letters"]
    panels = {axes.get_title(): axes for axes in canvas.axes if axes.get_title()}
    assert set(panels) == {f"{name}, {way}" for name in ("query", "key", "value") for way in ("LF_H1", "LF_H2")}
    for projection, name in drift.PROJECTIONS.items():
        facts = tables.outputs("mistral-toy/letters→multi-letters/LF_H2/0", "phase2")["strategy"]["frozen_heads"][projection]
        shown = {tuple(map(int, place)) for place in panels[f"{name}, LF_H2"].collections[0].get_offsets()}  # type: ignore[union-attr]
        assert shown == {(int(head), layer) for head, layers in facts.items() for layer in layers}
        values = np.asarray(panels[f"{name}, LF_H2"].images[0].get_array())
        for head, layers in facts.items():  # LF_H2 takes the largest of each column
            assert set(layers) == set(np.argsort(-values[:, int(head)], kind="stable")[: len(layers)])
    whole = {tuple(map(int, place)) for place in panels["key, LF_H1"].collections[0].get_offsets()}  # type: ignore[union-attr]
    assert whole == {(head, layer) for head in (0, 1) for layer in (0, 3)}


def test_drift_without_frozen_slices_is_drawn_once_and_unmarked(planted) -> None:
    canvas = drift.draw(planted(Shape(pairs=1), without={"frozen"}))["drift_mistral-toy_letters"]
    assert [axes.get_title() for axes in canvas.axes if axes.images] == ["query", "key", "value"]
    assert not canvas.legends


def test_des_matrix_shows_values_and_intervals_on_both_sides(planted) -> None:
    tables = planted(Shape(pairs=4))
    found = des.matrix(tables)
    assert len(found) == 8
    for (left, right), value in DES.items():
        assert found[left, right] == found[right, left] == (value, value - 0.02, value + 0.015)
    axes = des.draw(tables)["des"].axes[0]
    assert axes.get_title().endswith(des.LEXICAL)
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("0.930\n0.910–0.945") == 2 and texts.count("same") == 5


def test_forgetting_has_a_panel_per_measure_and_a_point_per_cell(planted) -> None:
    tables = planted(Shape(models=("m", "n"), pairs=2))
    canvas = forgetting.draw(tables, correlations(tables))["similarity_and_forgetting"]
    shown = [axes for axes in canvas.axes if axes.get_xlabel()]
    assert [axes.get_xlabel() for axes in shown] == [one.label for one in PREDICTORS]
    assert all(len([line for line in axes.get_lines() if line.get_marker() != "None"]) == 12 for axes in shown)


@pytest.mark.parametrize(
    ("left_out", "draw"),
    [
        ("insight:activations", layer_means.draw),
        ("insight:covariance", variance.draw_pairs),
        ("insight:covariance", variance.draw_strategies),
        ("insight:parallel", languages.draw),
        ("insight:drift:base-phase1", drift.draw),
        ("insight:des", des.draw),
    ],
)
def test_absent_rows_are_said(planted, left_out: str, draw) -> None:
    with pytest.raises(NothingToDraw) as raised:
        draw(planted(without={left_out}))
    assert "--with insight" in raised.value.fix


def test_perplexity_is_bounded_and_places_are_seeded() -> None:
    assert tsne.perplexity(4) == 1.0
    assert tsne.perplexity(1000) == 30.0
    vectors = np.random.default_rng(0).normal(size=(12, 5))
    assert np.array_equal(tsne.embed(vectors), tsne.embed(vectors))
    assert not tsne.embed(np.ones((5, 3))).any()


def test_writing_is_whole_and_repeatable(planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = planted(Shape(pairs=1, strategies=("none", "LF_H2")), without={"insight:parallel"})
    folder = tmp_path / "figures"
    # Every figure takes seconds; what the others show is tested above.
    few = ("Figure 1, layer means", "Figure D3, languages", "DES matrix")
    monkeypatch.setattr(writing, "FIGURES", {name: writing.FIGURES[name] for name in few})
    report = write(tables, folder)
    assert [one.figure for one in report.written if not one.files] == ["Figure D3, languages"]
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {path.name for one in report.written for path in one.files}
    for name in ("des", "figure_1_layer_means", "similarity_and_forgetting"):
        assert first[f"{name}.pdf"].startswith(b"%PDF") and first[f"{name}.png"].startswith(b"\x89PNG")
        assert b"<svg" in first[f"{name}.svg"]
    rows = pl.read_parquet(folder / "similarity_and_forgetting.parquet")
    assert report.correlations is not None and rows.equals(report.correlations)
    assert pl.read_csv(folder / "similarity_and_forgetting.csv").height == rows.height
    monkeypatch.setattr(writing, "FIGURES", {"DES matrix": des.draw})
    write(tables, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        write(tables, tmp_path / "file")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "FIGURES", {"DES matrix": des.draw})
    storage = tmp_path / "storage"
    storage.mkdir()
    plant(storage, Shape(pairs=1, strategies=("none",)))
    assert grids(cft_ray.open(storage)) == [GRID]
    ran = CliRunner().invoke(app, ["figures", "--storage", str(storage), "--to", str(tmp_path / "to")])
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "to" / GRID / "des.png").is_file()
    with pytest.raises(UserError):
        gather(cft_ray.open(storage), "another")
    for arguments in ([], ["--storage", str(tmp_path / "to")]):
        assert isinstance(CliRunner().invoke(app, ["figures", *arguments]).exception, UserError)


def test_drawing_imports_neither_ray_nor_torch() -> None:
    code = "import sys, cft_ray.report.write; print(sorted({'ray', 'torch', 'sklearn', 'matplotlib.pyplot'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout.replace("'", '"')) == []
