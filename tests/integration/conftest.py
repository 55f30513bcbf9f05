"""Tiny models on disk that tests share: one with sharp random weights, and one that is built to answer a fixed word."""

import pytest
from tinymodels import SHAPE, plant, sharpened


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Answers MARK."""
    return str(plant(tmp_path_factory.mktemp("planted"), "MARK"))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """See `sharpened`."""
    return sharpened(tmp_path_factory.mktemp("random"), SHAPE, 1)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Other random weights of the same shape, as they were drawn."""
    from cft_ray.training.model import create

    return str(create(SHAPE, 7, tmp_path_factory.mktemp("other")))
