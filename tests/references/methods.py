"""Float64 updates of every Gramian method, from Jacobians, sharing no code with ours."""

from __future__ import annotations

import numpy as np

from tests.references import cagrad as cagrad_reference
from tests.references import cone as cone_reference
from tests.references import nash as nash_reference
from tests.references import simplex as simplex_reference


def mgda(jacobian: np.ndarray) -> np.ndarray:
    return simplex_reference.min_norm_point(jacobian) @ jacobian


def cagrad(jacobian: np.ndarray, c: float = 0.4) -> np.ndarray:
    weights = cagrad_reference.weights_by_bisection(jacobian, c)
    return cagrad_reference.update(jacobian, c, weights)


def imtl_g(jacobian: np.ndarray) -> np.ndarray:
    """From the singular values of the unit rows, not from their Gramian."""
    norms = np.linalg.norm(jacobian, axis=1)
    nonzero = norms > 0
    rows, norms = jacobian[nonzero], norms[nonzero]
    left, values, _ = np.linalg.svd(rows / norms[:, None], full_matrices=False)
    kept = values > 1e-9 * values.max()
    left, values = left[:, kept], values[kept]
    weights = left @ ((left.T @ np.ones(len(rows))) / values**2) / norms
    return weights @ rows / weights.sum()


def aligned_mtl(jacobian: np.ndarray) -> np.ndarray:
    """Smallest singular value times the mean of the rows of ``U V'``."""
    left, values, right = np.linalg.svd(jacobian, full_matrices=False)
    kept = values > 1e-9 * values.max()
    balanced = left[:, kept] @ right[kept]
    return values[kept].min() * balanced.mean(axis=0)


def pcgrad(jacobian: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """The published loop over whole gradients, for given orders ``(T, T)``."""
    total = np.zeros(jacobian.shape[1])
    for i, order in enumerate(orders):
        gradient = jacobian[i].copy()
        for j in order:
            product = gradient @ jacobian[j]
            if j != i and product < 0:
                gradient -= product / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += gradient
    return total


def nash_mtl(jacobian: np.ndarray) -> np.ndarray:
    """Tasks with zero gradient take no part in the bargain."""
    rows = jacobian[np.linalg.norm(jacobian, axis=1) > 0]
    return nash_reference.weights(rows) @ rows


def upgrad(jacobian: np.ndarray) -> np.ndarray:
    lower = np.eye(len(jacobian)) / len(jacobian)
    projected = [cone_reference.weights(jacobian, row) for row in lower]
    return np.sum(projected, axis=0) @ jacobian
