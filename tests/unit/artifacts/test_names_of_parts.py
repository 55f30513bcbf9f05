"""What messages call a part of a hub repository."""

import pytest

from cft_ray.artifacts.fetched import Part


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Part("a/b", "model"), "model a/b@main"),
        (Part("a/b", "model", "v1"), "model a/b@v1"),
        (Part("a/b", "dataset", split="train"), "dataset a/b@main (default, train)"),
        (Part("a/b", "dataset", config="x", split="test"), "dataset a/b@main (x, test)"),
        (Part("a/b", "dataset", pattern="*.json"), "dataset a/b@main (*.json)"),
    ],
)
def test_what_a_part_is_called(part, said):
    assert str(part) == said
