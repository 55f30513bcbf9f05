"""Covariances of activations, without any d × d matrix where there are fewer prompts than hidden dimensions. Pure.

With A the centred activations of n prompts over sqrt(n - 1), the covariance is AᵀA (d × d). It has the nonzero eigenvalues of
the Gram matrix AAᵀ (n × n), and its trace, Frobenius and spectral norm are functions of those.

For two models that read the same prompts the norms of AᵀA - BᵀB are wanted. Taken as a difference of large numbers they
would be lost where the models are nearly equal. With the mean S = (A + B) / 2 and the difference D = A - B, which costs no
digits of float32 activations,

    AᵀA - BᵀB = SᵀD + DᵀS,

and with one QR decomposition [Sᵀ Dᵀ] = Q [R_S R_D] it is Q (R_S R_Dᵀ + R_D R_Sᵀ) Qᵀ: the matrix in the middle has min(d, 2n)
rows and the same nonzero eigenvalues. Its error is relative to ‖S‖ ‖D‖, and nothing is squared on the way, as it would be
in a Gram matrix of the stacked activations.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Norms:
    """Of a symmetric matrix."""

    trace: float
    frobenius: float
    spectral: float


def centred(activations: np.ndarray) -> np.ndarray:
    """[n, d] float64: minus the mean over the rows, over sqrt(n - 1); n must be at least 2."""
    wide = np.asarray(activations, dtype=np.float64)
    return (wide - wide.mean(0)) / np.sqrt(len(wide) - 1)


def covariance(activations: np.ndarray) -> Norms:
    """Norms of the covariance (divisor n - 1) of [n, d] activations, n at least 2."""
    rows = centred(activations)
    short = rows if rows.shape[0] <= rows.shape[1] else rows.T
    return _norms(short @ short.T)


def covariance_difference(left: np.ndarray, right: np.ndarray) -> Norms:
    """Norms of the covariance of ``left`` minus that of ``right``; [n, d] each, row by row of the same prompts."""
    a, b = (np.asarray(side, dtype=np.float64) for side in (left, right))
    of_mean, of_difference = np.split(_triangle(np.concatenate([centred((a + b) / 2), centred(a - b)]).T), 2, axis=1)
    half = of_mean @ of_difference.T
    return _norms(half + half.T)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Cosine of two vectors; 0 where one of them is nothing."""
    a, b = (np.asarray(side, dtype=np.float64) for side in (left, right))
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0


def _triangle(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _norms(symmetric: np.ndarray) -> Norms:
    return Norms(
        trace=float(np.trace(symmetric)),
        frobenius=float(np.linalg.norm(symmetric)),
        spectral=float(np.abs(np.linalg.eigvalsh(symmetric)).max()),
    )
