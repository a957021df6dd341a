"""Float64 oracles and adversarial problems for the solvers on the simplex.

Everything is computed from the Jacobian itself, never from its Gramian, whose rounding
is part of what the tests judge.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from scipy.optimize import nnls


def hull_projection(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Weights of the point of the rows' affine hull that is nearest to ``point``.

    Works on unit rows ``u_i``, whose weights ``z`` obey ``c'z = 1``: bad scaling of the
    rows then costs no accuracy.
    """
    norms = np.linalg.norm(rows, axis=1)
    if norms.min() == 0:
        return (norms == 0) / (norms == 0).sum()
    units, inverse = rows / norms[:, None], norms.min() / norms
    z = inverse / (inverse @ inverse)
    if len(rows) > 1:
        moves = np.linalg.qr(inverse[:, None], mode="complete")[0][:, 1:]
        left, values, right = np.linalg.svd(units.T @ moves, full_matrices=False)
        inverses = np.where(values > 1e-13, 1 / np.maximum(values, 1e-13), 0)
        missing = point / norms.min() - units.T @ z
        z = z + moves @ (right.T @ (inverses * (left.T @ missing)))
    weights = z * inverse
    return weights / weights.sum()


def hull_min_norm(rows: np.ndarray) -> np.ndarray:
    """Weights (summing to one) of the min-norm point of the rows' affine hull."""
    return hull_projection(rows, np.zeros(rows.shape[1]))


def lift(weights: np.ndarray, support: tuple[int, ...], num_tasks: int) -> np.ndarray:
    """Weights on all the tasks from weights on a support."""
    lifted = np.zeros(num_tasks)
    lifted[list(support)] = weights
    return lifted


def min_norm_by_enumeration(jacobian: np.ndarray) -> np.ndarray:
    """Weights of the min-norm point of the hull: the best over all supports, T <= 8."""
    jacobian = np.asarray(jacobian, np.float64)
    num_tasks = len(jacobian)
    best, best_norm = None, np.inf
    for size in range(1, num_tasks + 1):
        for support in combinations(range(num_tasks), size):
            weights = hull_min_norm(jacobian[list(support)])
            if weights.min() < 0:
                continue
            weights = lift(weights, support, num_tasks)
            norm = np.linalg.norm(weights @ jacobian)
            if norm < best_norm:
                best, best_norm = weights, norm
    return best


def min_norm_point(jacobian: np.ndarray) -> np.ndarray:
    """Weights of the min-norm point for any T: Lawson-Hanson, then its support exactly.

    The min-norm point is ``b / sum(b)`` for ``min_{b >= 0} |J'b|² + (1'b - 1)²``, here
    with unit rows.
    """
    jacobian = np.asarray(jacobian, np.float64)
    norms = np.linalg.norm(jacobian, axis=1)
    if norms.min() == 0:
        return (norms == 0) / (norms == 0).sum()
    inverse = norms.min() / norms
    system = np.vstack([(jacobian / norms[:, None]).T, inverse])
    target = np.zeros(len(system))
    target[-1] = 1
    weights = nnls(system, target, maxiter=100 * len(norms))[0] * inverse
    support = tuple(np.flatnonzero(weights > 0))
    polished = hull_min_norm(jacobian[list(support)])
    if polished.min() >= 0:
        weights = lift(polished, support, len(norms))
    return weights / weights.sum()


def kkt_residual(jacobian: np.ndarray, weights: np.ndarray) -> float:
    """How far ``g = J'w`` is from ``g_i.g >= g.g``: the largest missing cosine.

    ``max_i (g.g - g_i.g) / (|g_i| |g|)``, which no scaling of the rows changes.
    """
    jacobian = np.asarray(jacobian, np.float64)
    update = np.asarray(weights, np.float64) @ jacobian
    norms = np.linalg.norm(jacobian, axis=1)
    excess = (update @ update - jacobian @ update)[norms > 0] / norms[norms > 0]
    return float(excess.max() / np.linalg.norm(update))


def well_posed_problems(
    seed: int = 0, sizes: Sequence[int] = (1, 2, 3, 5, 10, 40)
) -> Iterator[tuple[str, np.ndarray]]:
    """Named Jacobians whose combined update float32 can resolve to 1e-4."""
    rng = np.random.default_rng(seed)
    for num_tasks in sizes:
        rows = rng.normal(size=(num_tasks, 4 * num_tasks + 3))
        shared = rng.normal(size=(1, rows.shape[1]))
        yield f"random-{num_tasks}", rows
        yield f"common-{num_tasks}", rows + 0.7 * shared
        yield f"conflicting-{num_tasks}", rows - 0.7 * rows.mean(0)
        scales = 10 ** rng.uniform(-3, 3, size=(num_tasks, 1))
        yield f"scaled-{num_tasks}", rows * scales
        yield f"scaled-conflicting-{num_tasks}", (rows - 0.7 * rows.mean(0)) * scales
        wide = 10 ** rng.uniform(-6, 6, size=(num_tasks, 1))
        yield f"widely-scaled-{num_tasks}", rows * wide
        yield f"tiny-{num_tasks}", rows * 1e-10
        yield f"huge-{num_tasks}", rows * 1e10
        if num_tasks > 1:
            yield f"duplicates-{num_tasks}", np.vstack([rows[:-1], rows[:1]])
            yield f"zero-row-{num_tasks}", np.vstack([rows[:-1], 0 * rows[:1]])
        if num_tasks > 2:
            few = rng.normal(size=(num_tasks, num_tasks // 2))
            few[:, 0] = np.abs(few[:, 0]) + 1  # the hull stays away from zero
            yield f"low-rank-{num_tasks}", few
            yield f"low-rank-scaled-{num_tasks}", few * scales


def hard_problems(
    seed: int = 0, sizes: Sequence[int] = (2, 3, 5, 10, 40)
) -> Iterator[tuple[str, np.ndarray]]:
    """Named Jacobians at the edge of what a Gramian can tell: finiteness and ok."""
    rng = np.random.default_rng(seed)
    for num_tasks in sizes:
        rows = rng.normal(size=(num_tasks, 3 * num_tasks))
        balance = rng.dirichlet(np.ones(num_tasks))
        stationary = rows - balance @ rows
        yield f"stationary-{num_tasks}", stationary
        for slack in (1e-6, 1e-3):
            yield f"near-stationary-{slack}-{num_tasks}", stationary + slack * rows[:1]
            yield f"near-parallel-{slack}-{num_tasks}", rows[:1] + slack * rows
        yield f"over-stationary-{num_tasks}", rng.normal(size=(num_tasks, 2))
        yield f"opposed-{num_tasks}", np.vstack([rows[:-1], -rows[:1]])
        yield f"all-equal-{num_tasks}", np.repeat(rows[:1], num_tasks, 0)
        yield f"line-{num_tasks}", np.outer(rng.uniform(0.5, 9, num_tasks), rows[0])
        yield f"signed-line-{num_tasks}", np.outer(rng.normal(size=num_tasks), rows[0])
        wide = 10 ** rng.uniform(-6, 6, size=(num_tasks, 1))
        yield f"stationary-wide-{num_tasks}", stationary * wide
        yield (
            f"one-giant-{num_tasks}",
            rows * np.r_[1e6, np.ones(num_tasks - 1)][:, None],
        )
        yield f"zeros-{num_tasks}", 0 * rows
