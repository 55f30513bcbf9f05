"""Covariance norms against the explicit d × d matrices."""

import numpy as np
import pytest

from cft_ray.activations.statistics import cosine, covariance, covariance_difference


def drawn(seed: int, n: int, d: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(n, d)) * generator.gamma(1.0, size=d) + generator.normal(size=d) * 5).astype(np.float32)


def explicit(matrix: np.ndarray) -> tuple[float, float, float]:
    return float(np.trace(matrix)), float(np.linalg.norm(matrix)), float(np.linalg.norm(matrix, 2))


def found(norms) -> tuple[float, float, float]:
    return norms.trace, norms.frobenius, norms.spectral


@pytest.mark.parametrize(("n", "d"), [(2, 7), (5, 12), (12, 5), (6, 12), (40, 3), (3, 1)])
def test_norms_equal_those_of_the_whole_matrices(n, d):
    left, right = drawn(0, n, d), drawn(1, n, d)
    ours, theirs = (np.atleast_2d(np.cov(side.astype(np.float64), rowvar=False)) for side in (left, right))
    assert found(covariance(left)) == pytest.approx(explicit(ours), rel=1e-10)
    assert found(covariance_difference(left, right)) == pytest.approx(explicit(ours - theirs), rel=1e-10)


def test_models_that_are_nearly_equal_keep_their_digits():
    """The reference is exact arithmetic on the same numbers: a rank-one change of known size."""
    left = drawn(2, 6, 50).astype(np.float64)
    step = 1e-11
    change = np.outer(left[:, 0] - left[:, 0].mean(), np.eye(50)[3])
    right = left + step * change
    a, d = left - left.mean(0), -step * (change - change.mean(0))
    exact = (a.T @ d + d.T @ a - d.T @ d) / 5  # AᵀA - (A - D)ᵀ(A - D), with the sign of D = left - right
    norms = covariance_difference(left, right)
    assert norms.spectral == pytest.approx(np.linalg.norm(exact, 2), rel=1e-3)
    assert norms.frobenius == pytest.approx(np.linalg.norm(exact), rel=1e-3)


def test_a_model_does_not_differ_from_itself_and_order_does_not_matter():
    left, right = drawn(3, 8, 20), drawn(4, 8, 20)
    assert found(covariance_difference(left, left)) == (0, 0, 0)
    order = np.random.default_rng(0).permutation(8)
    forth, back = covariance_difference(left, right), covariance_difference(right[order], left[order])
    assert found(back) == pytest.approx((-forth.trace, forth.frobenius, forth.spectral), rel=1e-12)


def test_cosine():
    assert cosine(np.array([1, 0]), np.array([2, 0])) == 1
    assert cosine(np.array([1, 0]), np.array([0, 3])) == 0
    assert cosine(np.array([1, 0]), np.array([0, 0])) == 0
