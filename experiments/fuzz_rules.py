r"""Residuals in float64 of methods that follow a rule rather than solve a problem.

As in :mod:`experiments.fuzz_residuals`: batches of Gramians and weights, and errors
relative to what a float32 Gramian tells.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize

from experiments.fuzz_residuals import EPS, Scaled


def pcgrad(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """Distance from the closed form of two tasks, or, with more, from the plain sum.

    Relative to the longest gradient. NaN where more than two tasks conflict: the order
    of the projections is random.
    """
    cosines, num_tasks = problem.cosines, weights.shape[1]
    largest = problem.norms.max(1, keepdims=True)
    units = problem.norms / np.where(largest > 0, largest, 1)
    exact = units.copy()
    if num_tasks == 2:
        against = np.maximum(-cosines[:, :1, 1], 0)
        exact = exact + against * units[:, ::-1]
    peaceful = (cosines >= 0).all((1, 2)) | (num_tasks == 2)
    distance = np.abs(weights * units - exact).max(1)
    return np.where(peaceful, distance, np.nan)


gradvac = pcgrad
"""The targets of the first step are PCGrad's zeros."""


def gradnorm(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """Distance from the positive weights that add up to ``T``, per unit of ``T``."""
    num_tasks = weights.shape[1]
    total = np.abs(weights.sum(1) / num_tasks - 1)
    return np.where((weights > 0).all(1), total, np.inf)


def krum(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """Mean score of the chosen tasks above the best one's, relative, or off the simplex.

    Less what float32 squares of the norms leave open in every score.
    """
    num_tasks = weights.shape[1]
    largest = problem.norms.max(1, keepdims=True)
    units = problem.norms / np.where(largest > 0, largest, 1)
    products = problem.cosines * units[:, :, None] * units[:, None, :]
    sums = units[:, :, None] ** 2 + units[:, None, :] ** 2
    distances = np.maximum(sums - 2 * products, 0)
    others = np.where(np.eye(num_tasks, dtype=bool), np.inf, distances)
    order = np.argsort(others, axis=2)[:, :, : max(num_tasks - 2, 0)]
    scores = np.take_along_axis(others, order, axis=2).sum(2)
    noise = 32 * EPS * np.take_along_axis(sums, order, axis=2).sum(2)
    best = scores.min(1, keepdims=True)
    above = np.maximum(scores - best - noise, 0) / np.maximum(best, 1e-300)
    return np.maximum(np.sum(weights * above, axis=1), _off_simplex(weights))


def modo(
    problem: Scaled, weights: np.ndarray, gamma: float = 1.0, rho: float = 0.1
) -> np.ndarray:
    """Whether the first point is the projection of ``v``: ``max_j (v - w).(e_j - w)``.

    Per unit of ``1 +`` the largest sum of sizes in ``G c``, to which ``v`` is known.
    """
    num_tasks = weights.shape[1]
    gram = problem.cosines * problem.norms[:, :, None] * problem.norms[:, None, :]
    center = np.full(num_tasks, 1 / num_tasks)
    v = center - gamma * (gram @ center + rho * center)
    size = 1 + (np.abs(gram) @ center).max(1)
    pull = (v - weights) / size[:, None]
    wrong = pull.max(1) - np.sum(pull * weights, axis=1)
    return np.maximum(wrong, _off_simplex(weights))


def sdmgrad(problem: Scaled, weights: np.ndarray, pull: float = 0.3) -> np.ndarray:
    """Distance from the mixtures of the simplex and the preference.

    No more than that: the published inner steps overshoot and amplify rounding errors, so
    that float32 does not determine the point (see the method's docstring).
    """
    num_tasks = weights.shape[1]
    return _off_simplex((1 + pull) * weights - pull / num_tasks)


def auto_lambda(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """Error of the first direction in the logits, which the weights of rate 1 tell.

    NaN where the summed gradients (nearly) cancel: then it is a matter of rounding.
    """
    gram = _relative(problem)
    rates = gram.sum(1)
    size = np.linalg.norm(rates, axis=1)
    noise = EPS * np.linalg.norm(np.abs(gram).sum(1), axis=1)
    exact = _centred(rates / np.where(size > 0, size, 1)[:, None])
    exact = exact / weights.shape[1]
    error = np.abs(_direction(weights) - exact).max(1)
    return np.where(noise <= 1e-3 * size, error, np.nan)


def moml(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """Error of the first direction in the logits: the min-norm point of unit rows.

    NaN where a row of products is (nearly) constant: then its direction is a matter of
    rounding; and where SciPy's least squares do not end.
    """
    gram = _relative(problem)
    sizes = np.linalg.norm(gram, axis=2, keepdims=True)
    rows = _centred(gram / np.where(sizes > 0, sizes, 1))
    spread = np.linalg.norm(rows, axis=2, keepdims=True)
    rows = rows / np.where(spread > 0, spread, 1)
    one = np.append(np.zeros(rows.shape[2]), 1.0)
    exact = np.empty_like(weights)
    for number, each in enumerate(rows):
        system = np.vstack([each.T, np.ones(len(each))])
        try:
            shares, _ = optimize.nnls(system, one, maxiter=1_000 * len(each))
        except RuntimeError:
            exact[number] = np.nan
        else:
            exact[number] = shares @ each / shares.sum()
    error = np.abs(_direction(weights) - exact).max(1)
    flat = (spread < 1e-3) & (sizes > 0)
    return np.where(flat.any((1, 2)), np.nan, error)


def _relative(problem: Scaled) -> np.ndarray:
    """The Gramians in units of their largest entry, ``(B, T, T)``."""
    largest = problem.norms.max(1, keepdims=True)
    units = problem.norms / np.where(largest > 0, largest, 1)
    return problem.cosines * units[:, :, None] * units[:, None, :]


def _centred(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(-1, keepdims=True)


def _direction(weights: np.ndarray, epsilon: float = 1e-3) -> np.ndarray:
    """The direction ``g`` of Adam's first step of rate 1 from equal logits.

    ``log w`` is ``g / (|g| + epsilon)`` but for a constant, which makes ``sum(g) = 0``:
    found by bisection, as the sum grows with it.
    """
    logits = np.log(weights)
    low = -1 - logits.min(1, keepdims=True)
    high = 1 - logits.max(1, keepdims=True)

    def inverse(constant: np.ndarray) -> np.ndarray:
        steps = np.clip(logits + constant, -1 + 1e-12, 1 - 1e-12)
        return epsilon * steps / (1 - np.abs(steps))

    for _ in range(60):
        middle = (low + high) / 2
        above = inverse(middle).sum(1, keepdims=True) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return inverse((low + high) / 2)


def _off_simplex(weights: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(weights.sum(1) - 1), -weights.min(1))
