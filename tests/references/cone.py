"""Float64 oracles for the projection on the dual cone, from the Jacobian itself."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from scipy.optimize import nnls


def _scaled(jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unit length, and the lengths (1 for zero rows)."""
    norms = np.linalg.norm(jacobian, axis=1)
    norms = np.where(norms > 0, norms, 1)
    return jacobian / norms[:, None], norms


def weights(jacobian: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """``argmin |J'v|`` over ``v >= lower`` by SciPy's non-negative least squares."""
    rows, norms = _scaled(np.asarray(jacobian, np.float64))
    anchor = lower * norms
    size = np.abs(anchor).max()
    if size == 0:
        return np.array(lower, np.float64)
    excess, _ = nnls(rows.T, -(anchor / size) @ rows, maxiter=10_000)
    return lower + excess * (size / norms)


def weights_by_enumeration(jacobian: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The same by trying every set of free weights, T <= 6: nothing iterative."""
    rows, norms = _scaled(np.asarray(jacobian, np.float64))
    anchor = lower * norms
    best, best_value = anchor, np.linalg.norm(anchor @ rows)
    for size in range(1, len(rows) + 1):
        for free in map(list, combinations(range(len(rows)), size)):
            candidate = anchor.copy()
            solved = np.linalg.lstsq(rows[free].T, -anchor @ rows, rcond=1e-11)
            candidate[free] += solved[0]
            value = np.linalg.norm(candidate @ rows)
            if (solved[0] >= -1e-13).all() and value < best_value:
                best, best_value = candidate, value
    return best / norms


def kkt_violation(jacobian, lower, value) -> float:
    """Largest violation of ``v >= l``, ``Gv >= 0``, ``(v - l)'Gv = 0``.

    Lengths are relative to those of the vectors combined, so the scale of the rows
    and of the bounds does not matter.
    """
    rows, norms = _scaled(np.asarray(jacobian, np.float64))
    anchor = np.asarray(lower, np.float64) * norms
    excess = np.asarray(value, np.float64) * norms - anchor
    size = np.abs(anchor).sum() + np.abs(excess).sum()
    if size == 0:
        return 0.0
    gradient = rows @ ((anchor + excess) @ rows)
    # A weight within rounding of its bound counts as at the bound.
    complementary = np.abs(gradient) * (excess > 1e-7 * size)
    return max(-excess.min(), -gradient.min(), complementary.max()) / size


def well_posed(rng: np.random.Generator, num_tasks: int) -> Iterator:
    """Named Jacobians whose float32 Gramian determines the update to 1e-4."""
    size = 3 * num_tasks
    normal = rng.normal(size=(num_tasks, size))
    yield "random", normal
    yield "conflicting", normal - 0.9 * normal.mean(0)
    yield "negative", 3 * np.eye(num_tasks) - 0.3 * np.abs(normal[:, :num_tasks])
    yield "near parallel", normal[:1] + 0.01 * normal
    yield "badly scaled", normal * 10 ** rng.uniform(-3, 3, (num_tasks, 1))
    yield "duplicates", normal[rng.integers(0, (num_tasks + 1) // 2, num_tasks)]
    low_rank = rng.normal(size=(num_tasks, 4))
    low_rank[:, 0] = 1 + np.abs(low_rank[:, 0])  # a common descent direction exists
    yield "low rank", low_rank
    zero = normal.copy()
    zero[-1] = 0
    yield "zero row", zero
    for exponent in (-10, 10):
        yield f"times 1e{exponent}", normal * 10.0**exponent


def adversarial(rng: np.random.Generator, num_tasks: int) -> Iterator:
    """Named Jacobians that are singular or almost so, or Pareto-stationary."""
    normal = rng.normal(size=(num_tasks, 3 * num_tasks))
    signs = np.sign(rng.normal(size=(num_tasks, 1)))
    yield "opposed", normal[rng.integers(0, (num_tasks + 1) // 2, num_tasks)] * signs
    yield "nearly opposed", (normal[:1] + 0.1 * normal) * signs
    yield "stationary", normal - normal.mean(0)
    yield "nearly stationary", normal - 0.999 * normal.mean(0)
    yield "few parameters", rng.normal(size=(num_tasks, max(1, num_tasks // 3)))
    yield "one parameter", rng.normal(size=(num_tasks, 1))
    yield "walk", np.cumsum(normal, axis=0)
    yield "powers", np.linspace(-1, 1, num_tasks)[:, None] ** np.arange(num_tasks)
    yield "zero", np.zeros((num_tasks, 3))
