"""Clusters of similar rows, by affinity propagation (scikit-learn, imported late)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from mtl_jax._types import ArrayTree, check_range
from mtl_jax.sparsity.rows import LayersSpec, chosen_leaves, to_rows

_NOISE = 1e-4
_LARGE = 2048  # rows from which on float32 is used: three n x n arrays are in memory


def row_similarity(rows: Any) -> np.ndarray:
    r"""Returns the similarities :math:`S_{ij} = w_i^\top w_j / \max(\|w_i\|^2, \|w_j\|^2)`.

    They lie in [-1, 1]; 1 means equal. Two zero rows have 1, a zero row and another 0.

    Args:
        rows: ``(n, d)``.

    Returns:
        ``(n, n)`` in NumPy, float64 (float32 for more than 2048 rows).

    Raises:
        ValueError: for another rank, or rows that are not finite.

    Examples:
        >>> print(row_similarity([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
        [[1.  0.5 0. ]
         [0.5 1.  0. ]
         [0.  0.  1. ]]
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or not np.isfinite(rows.astype(np.float64)).all():
        raise ValueError(f"rows must be finite numbers (n, d), got shape {rows.shape}")
    rows = rows.astype(np.float32 if len(rows) > _LARGE else np.float64)
    largest = np.abs(rows).max(initial=0)
    rows = rows / (largest if largest > 0 else 1)  # or squares may underflow
    products = rows @ rows.T
    squares = np.diagonal(products).copy()
    divisors = np.maximum(squares[:, None], squares[None, :])
    zero = divisors == 0
    products[zero] = 1
    divisors[zero] = 1
    return products / divisors


def cluster_rows(
    rows: Any,
    *,
    preference: float = 0.7,
    damping: float = 0.5,
    max_iterations: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Clusters the rows of one layer that are not zero, by affinity propagation.

    Where it does not converge there is no sharing: every row is a cluster of its own, and
    so is a row that its cluster's exemplar resembles less than ``preference``. Noise of
    1e-4 is added to the similarities: two nearly equal rows cannot agree which of them is
    the exemplar, and scikit-learn, whose own noise is of rounding size, then stops at
    clusters of unlike rows. (The released code clusters the zero rows, too, and averages
    them with others, which makes them non-zero.)

    Args:
        rows: ``(n, d)``.
        preference: similarity of every row to itself: the larger, the more clusters. The
            paper takes 0.7 for MultiMNIST and 0.8 for Cifar10Mnist.
        damping: see ``sklearn.cluster.AffinityPropagation``, in [0.5, 1).
        max_iterations: likewise.
        seed: of the noise.

    Returns:
        Cluster numbers int32 ``(n,)``, counted by first appearance; -1 for zero rows.

    Raises:
        ValueError: for numbers out of range, or rows that are not finite.
        ImportError: without scikit-learn.

    Examples:
        >>> cluster_rows([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [1.01, 0.0], [0.0, 2.1]])
        array([ 0, -1,  1,  0,  1], dtype=int32)

    References:
        Frey and Dueck, *Clustering by Passing Messages Between Data Points*, 2007
    """
    check_range("preference", preference)
    check_range("damping", damping, 0.5, 1, open_high=True)
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    rows = np.asarray(rows)
    live = np.flatnonzero(rows.any(axis=-1))
    labels = np.full(len(rows), -1, np.int32)
    similarity = row_similarity(rows[live])
    if len(live) < 2:
        labels[live] = 0
        return labels
    found = _propagate(similarity, preference, damping, max_iterations, seed)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    ranks = np.empty_like(first)
    ranks[np.argsort(first)] = np.arange(len(first))
    labels[live] = ranks[inverse]
    return labels


def cluster_layers(
    params: ArrayTree, layers: LayersSpec = None, **options: Any
) -> dict[str, np.ndarray]:
    """Clusters the rows of every chosen layer, see :func:`cluster_rows`.

    Args:
        params: the parameters.
        layers: which kernels, see ``LayersSpec``.
        options: of :func:`cluster_rows`.

    Returns:
        Path of each kernel to cluster numbers ``(n,)``, or ``(L, n)`` of stacked layers:
        what :func:`mtl_jax.sparsity.tie` and :func:`mtl_jax.sparsity.tied` take.

    Raises:
        ValueError: if ``layers`` chooses nothing, and as :func:`cluster_rows`.

    Examples:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [1.01, 0.0]])
        >>> cluster_layers({"dense": {"kernel": kernel}})
        {'dense/kernel': array([ 0, -1,  1,  0], dtype=int32)}
    """
    labels = {}
    for name, kernel in chosen_leaves(params, layers).items():
        rows = to_rows(np.asarray(kernel))
        flat = rows.reshape(-1, *rows.shape[-2:])
        found = np.stack([cluster_rows(layer, **options) for layer in flat])
        labels[name] = found.reshape(rows.shape[:-1])
    return labels


def _propagate(
    similarity: np.ndarray, preference: float, damping: float, limit: int, seed: int
) -> np.ndarray:
    try:
        from sklearn.cluster import AffinityPropagation
    except ImportError:
        raise ImportError(
            "clustering rows needs scikit-learn: pip install 'scikit-learn>=1.3,<2'"
        ) from None
    method = AffinityPropagation(
        damping=damping,
        max_iter=limit,
        affinity="precomputed",
        preference=preference,
        random_state=seed,
    )
    noise = np.random.default_rng(seed).uniform(-_NOISE, _NOISE, similarity.shape)
    with warnings.catch_warnings():
        # It warns where it does not converge, which its count of iterations says, too.
        warnings.simplefilter("ignore")
        method.fit(similarity + noise.astype(similarity.dtype))
    alone = np.arange(len(similarity))
    if method.n_iter_ >= limit:
        return alone
    exemplars = method.cluster_centers_indices_[method.labels_]
    like = similarity[alone, exemplars] >= preference
    return np.where(like | (exemplars == alone), exemplars, alone)
