"""What is asked and what came are values: equal by what they hold, and not to be changed."""

import dataclasses

import pytest

from cft_ray.generation.requests import Answer, Prompt


@pytest.mark.parametrize("made", [lambda: Answer(1, "x", 2, "stop"), lambda: Prompt(1, [5], 3, 4)])
def test_they_are_values(made):
    assert made() == made() and dataclasses.replace(made(), index=2) != made()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().index = 2
