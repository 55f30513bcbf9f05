"""DES against its definition, its interval against repeated sampling, and what is embedded of a row."""

import numpy as np
import pytest

from cft_ray.embedding.blocks import text_of
from cft_ray.embedding.des import rows, sides, similarity


def data(seed, count, centre, spread=1.0):
    vectors = np.random.default_rng(seed).normal(centre, spread, (count, len(centre))).astype(np.float32)
    return np.full(count, "en", dtype=object), vectors


def reference(left, right):
    left, right = left.mean(axis=0), right.mean(axis=0)
    return left @ right / (np.linalg.norm(left) * np.linalg.norm(right))


CENTRES = np.zeros(16), np.zeros(16)
CENTRES[0][:4], CENTRES[1][2:6] = 1.0, 1.0


def test_value_is_the_definitions_whatever_the_parts_and_the_order():
    languages, left = data(0, 300, CENTRES[0])
    _, right = data(1, 300, CENTRES[1])
    whole = similarity(*(sides([(languages, side)], 50, (0, n))[None] for n, side in enumerate((left, right))))
    assert whole.value == pytest.approx(reference(left.astype(np.float64), right.astype(np.float64)), abs=1e-6)
    order = np.random.default_rng(2).permutation(300)
    parts = [(languages[:90], left[order][:90]), (languages[90:], left[order][90:])]
    again = similarity(sides(parts, 50, (0, 0))[None], sides([(languages, right)], 50, (0, 1))[None])
    assert again.value == pytest.approx(whole.value, abs=1e-6)


def test_identical_data_give_one():
    part = data(3, 200, CENTRES[0])
    found = similarity(sides([part], 200, (0, 0))[None], sides([part], 200, (0, 1))[None])
    assert found.value == pytest.approx(1.0, abs=1e-12) and found.high == 1.0 and 0.9 < found.low <= 1.0


def test_interval_covers_the_truth_nineteen_times_in_twenty():
    truth = reference(CENTRES[0][None], CENTRES[1][None])
    covered = []
    for trial in range(200):
        pair = [sides([data((trial, side), 200, CENTRES[side])], 200, (trial, side))[None] for side in (0, 1)]
        found = similarity(*pair)
        assert found.low <= found.high
        covered.append(found.low <= truth <= found.high)
    assert 0.90 <= np.mean(covered) <= 0.985


def test_seed_decides_the_interval():
    left, right = data(0, 100, CENTRES[0]), data(1, 100, CENTRES[1])
    one, same, other = (
        similarity(sides([left], 100, (seed, 0))[None], sides([right], 100, (seed, 1))[None]) for seed in (0, 0, 1)
    )
    assert one == same and one.value == other.value and one.low != other.low


def test_rows_by_language():
    vectors = np.array([[1, 0], [0, 1], [1, 1], [1, 0]], dtype=np.float32)
    left = sides([(np.array(["de", "es", "de", "es"], dtype=object), vectors)], 20, (0, 0))
    right = sides([(np.array(["de", "de", "sw", "sw"], dtype=object), vectors)], 20, (0, 1))
    found = {(row["measure"], row["language"]): row["value"] for row in rows(left, right, ("L", "R"))}
    assert {key for key in found if key[0] == "des"} == {("des", None), ("des", "de")}
    assert found["des", "de"] == pytest.approx(reference(vectors[[0, 2]], vectors[[0, 1]]))
    assert found["des_left", "es"] == pytest.approx(reference(vectors[[1, 3]], vectors))
    assert found["des_right", "sw"] == pytest.approx(reference(vectors, vectors[[2, 3]]))
    assert {(row["left"], row["right"]) for row in rows(left, right, ("L", "R"))} == {("L", "R")}


def test_a_mean_without_direction_has_no_row():
    nothing = sides([(np.array(["en"], dtype=object), np.zeros((1, 2), np.float32))], 5, (0, 0))
    assert rows(nothing, nothing, ("a", "b")) == []


def test_what_is_embedded_of_a_row():
    row = {"instruction": " Reverse ", "input": "abc", "output": "cba"}
    assert text_of(row, "instruction") == "Reverse\nabc"
    assert text_of(row, "instruction_and_answer") == "Reverse\nabc\ncba"
    assert text_of(row, "answer") == "cba"
    assert text_of({**row, "input": " "}, "instruction") == "Reverse"
