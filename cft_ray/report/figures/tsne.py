"""t-SNE (van der Maaten and Hinton 2008) of a few vectors, with a perplexity that their number allows."""

import numpy as np
from matplotlib.axes import Axes

LEAST = 4
"""vectors below which neighbourhoods mean nothing"""
SEED = 0


def perplexity(points: int) -> float:
    """The usual 30, and for fewer than 91 points a third of a point's neighbours, as van der Maaten's programs bound it."""
    return min(30.0, (points - 1) / 3)


def embed(vectors: np.ndarray) -> np.ndarray:
    """Places in the plane, seeded; started from the principal components, so that the large shape is kept.

    Args:
        vectors: [points, dimensions], at least `LEAST` points.

    Returns:
        [points, 2] float.
    """
    from sklearn.manifold import TSNE

    vectors = np.asarray(vectors, dtype=np.float64)
    if np.ptp(vectors, axis=0).max() == 0:  # nothing to tell apart; the principal components would be 0 / 0
        return np.zeros((len(vectors), 2))
    return TSNE(2, perplexity=perplexity(len(vectors)), init="pca", random_state=SEED).fit_transform(vectors)


def bare(axes: Axes) -> None:
    """Axes of an embedding: its units mean nothing, so there are no numbers."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("t-SNE 1 (no unit)")
    axes.set_ylabel("t-SNE 2 (no unit)")
