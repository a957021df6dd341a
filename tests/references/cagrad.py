"""Float64 oracle for CAGrad's dual, computed from the Jacobian itself."""

from itertools import combinations

import numpy as np

from tests.references.simplex import (
    hull_min_norm,
    hull_projection,
    lift,
    min_norm_point,
)


def update(jacobian: np.ndarray, c: float, weights: np.ndarray) -> np.ndarray:
    """``g0 + c |g0| / |g_w| g_w``."""
    mean, combined = jacobian.mean(0), weights @ jacobian
    return mean + c * np.linalg.norm(mean) / np.linalg.norm(combined) * combined


def kkt_residual(jacobian: np.ndarray, c: float, weights: np.ndarray) -> float:
    """How far ``d`` is from a worst task as good as the dual value says it can be.

    ``max_i (g_w.d - g_i.d) / (|g_i| |d|)``, where ``g_w.d`` is the dual value: zero
    exactly at the optimum, a proof that shares nothing with any solver, because no point
    of the ball of radius ``c |g0|`` around ``g0`` has a worst task above a dual value.
    """
    direction = update(jacobian, c, weights)
    products = jacobian @ direction
    norms = np.linalg.norm(jacobian, axis=1)
    return ((weights @ products - products) / norms).max() / np.linalg.norm(direction)


def _on_support(jacobian, c, support):
    """Minimiser over the affine hull of the support, None where there is none."""
    rows, mean = jacobian[list(support)], jacobian.mean(0)
    start = hull_min_norm(rows)
    move = hull_projection(rows, start @ rows - mean) - start
    room = (c * np.linalg.norm(mean)) ** 2 - np.sum((move @ rows) ** 2)
    if room <= 0:
        return None
    weights = start + np.linalg.norm(start @ rows) / np.sqrt(room) * move
    return lift(weights, support, len(jacobian)) if weights.min() >= 0 else None


def weights_by_enumeration(jacobian: np.ndarray, c: float) -> np.ndarray:
    """Dual weights: the support that meets the conditions, T <= 8."""
    jacobian = np.asarray(jacobian, np.float64)
    num_tasks = len(jacobian)
    candidates = (
        _on_support(jacobian, c, support)
        for size in range(1, num_tasks + 1)
        for support in combinations(range(num_tasks), size)
    )
    return min(
        (weights for weights in candidates if weights is not None),
        key=lambda weights: kkt_residual(jacobian, c, weights),
    )


def weights_by_bisection(jacobian: np.ndarray, c: float) -> np.ndarray:
    """Dual weights for any T.

    The dual's minimiser is the projection of ``-λ g0`` on the convex hull, which is the
    min-norm point of the rows ``g_i + λ g0``, for the ``λ`` with ``|g_w| = λ c |g0|``.
    Bisection over ``log λ`` finds the support, and its hull's minimiser is then exact.
    """
    jacobian = np.asarray(jacobian, np.float64)
    mean = jacobian.mean(0)
    radius = c * np.linalg.norm(mean)
    norms = np.linalg.norm(jacobian, axis=1)
    low, high = np.log(norms.min() / radius) - 30, np.log(norms.max() / radius) + 3
    candidates = []
    for _ in range(60):
        middle = (low + high) / 2
        weights = min_norm_point(jacobian + np.exp(middle) * mean)
        exact = _on_support(jacobian, c, tuple(np.flatnonzero(weights)))
        candidates += [weights] if exact is None else [weights, exact]
        if np.linalg.norm(weights @ jacobian) > np.exp(middle) * radius:
            low = middle
        else:
            high = middle
    return min(candidates, key=lambda weights: kkt_residual(jacobian, c, weights))
