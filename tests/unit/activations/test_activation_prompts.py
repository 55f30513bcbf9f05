"""Which prompts are taken."""

import pytest

from cft_ray.activations.prompts import sample
from cft_ray.data.rows import table
from cft_ray.grid.settings import ActivationSettings

ROWS = table([{"id": f"{code}{n}", "language": code, "instruction": f"{n}"} for n in range(20) for code in ("en", "de")])


@pytest.mark.parametrize(("seed", "count"), [(0, 5), (1, 1), (0, 20), (0, 99)])
def test_a_sample_takes_the_same_sentences_of_each_language(seed, count):
    taken = sample(ROWS, ActivationSettings(sample=count, seed=seed))
    numbers = {
        code: [
            id_[2:]
            for id_, language in zip(*taken.select(["id", "language"]).to_pydict().values(), strict=True)
            if language == code
        ]
        for code in ("en", "de")
    }
    assert numbers["en"] == numbers["de"] == sorted(numbers["en"], key=int)
    assert len(numbers["en"]) == min(count, 20)


def test_of_three_languages_each_gives_its_own_part():
    rows = [*ROWS.to_pylist(), *({"id": f"fr{n}", "language": "fr", "instruction": "x"} for n in range(3))]
    languages = sample(table(rows), ActivationSettings(sample=2))["language"].to_pylist()
    assert sorted(languages) == ["de", "de", "en", "en", "fr", "fr"]


def test_all_rows_without_a_sample():
    assert sample(ROWS, ActivationSettings()) is ROWS
