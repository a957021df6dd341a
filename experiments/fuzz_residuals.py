r"""Optimality residuals of task weights in float64, from the very Gramian they came from.

All work on batches ``(B, T, T)`` and weights ``(B, T)``, in terms of the cosines ``C``
and the lengths ``z_i = w_i |g_i|``, so that no scale plays a part. A Gramian in float32
is known to ``eps`` relative to its entries: it cannot tell a combination ``g = J'w``
shorter than :math:`\sqrt\epsilon \sum_i |z_i|` from zero. Residuals are therefore
relative to the larger of that and ``|g|``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EPS = float(np.finfo(np.float32).eps)


class Scaled(NamedTuple):
    """Gramians in float64, split into cosines (zero for zero rows) and norms."""

    cosines: np.ndarray
    norms: np.ndarray
    nonzero: np.ndarray


def scaled(grams: np.ndarray) -> Scaled:
    """Splits Gramians ``(B, T, T)`` into cosines and norms."""
    grams = grams.astype(np.float64)
    norms = np.sqrt(np.einsum("bii->bi", grams))
    divisors = np.where(norms > 0, norms, 1)
    cosines = grams / divisors[:, :, None] / divisors[:, None, :]
    return Scaled(cosines, norms, norms > 0)


def length(problem: Scaled, z: np.ndarray) -> np.ndarray:
    """``|J'w|``, or what float32 can tell from zero where that is more, ``(B,)``."""
    square = np.einsum("bi,bij,bj->b", z, problem.cosines, z)
    floor = EPS * np.abs(z).sum(1) ** 2
    return np.sqrt(np.maximum(np.maximum(square, floor), 1e-300))


def mgda(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """``max_i (g.g - g_i.g) / (|g_i| |g|)``, or the distance from the simplex.

    With zero gradients the weight outside them, which the documented limit is not to be.
    """
    norms, nonzero = problem.norms, problem.nonzero
    largest = norms.max(1, keepdims=True)
    z = weights * norms / np.where(largest > 0, largest, 1)  # any common factor will do
    images = np.einsum("bij,bj->bi", problem.cosines, z)
    inverse = np.where(nonzero, largest / np.where(nonzero, norms, 1), 0)
    values = np.einsum("bi,bi->b", z, images)[:, None] * inverse - images
    excess = np.where(nonzero, values, 0).max(1) / length(problem, z)
    misplaced = np.sum(weights * nonzero, axis=1)
    simplex = np.maximum(np.abs(weights.sum(1) - 1), -weights.min(1))
    return np.maximum(np.where(nonzero.all(1), excess, misplaced), simplex)


def nash_mtl(problem: Scaled, weights: np.ndarray, ridge: float = 1e-6) -> np.ndarray:
    """``max_i |b_i (C b)_i - 1|`` for ``b_i = alpha_i |g_i|`` and the documented ridge."""
    b = weights * problem.norms
    bent = ridge**2 * np.sum(b**2, axis=1, keepdims=True) * b
    residual = b * (np.einsum("bij,bj->bi", problem.cosines, b) + bent) - 1
    resolution = np.maximum(1, EPS**0.5 * b * b.sum(1, keepdims=True))
    bad = (weights < 0) | (problem.nonzero & (weights == 0))
    values = np.where(problem.nonzero, np.abs(residual) / resolution, 0)
    return np.where(bad.any(1), np.inf, values.max(1))


def fairgrad(
    problem: Scaled, weights: np.ndarray, alpha: float = 2.0, ridge: float = 1e-6
) -> np.ndarray:
    """``max_i |y_i (C y)_i / b_i - 1|``, ``b = d^(q-1) y^(1-q)``, ``q = 1 / alpha``.

    For ``y = d * w`` in the solver's units, in which its start has norm one and the
    documented ridge counts.
    """
    q = 1 / alpha
    norms, nonzero = problem.norms, problem.nonzero
    largest = norms.max(1, keepdims=True)
    largest = np.where(largest > 0, largest, 1)
    power = (q - 1) / (q + 1)
    start = np.where(nonzero, norms / largest, 1) ** power
    unit = np.linalg.norm(start, axis=1, keepdims=True)
    start = start / unit
    y = weights * norms / (unit * largest**power)
    gains = start**2 * (np.where(nonzero, y, 1) / start) ** (1 - q)
    gains = np.where(gains > 0, gains, 1)
    bent = ridge**2 * np.sum(y**2, axis=1, keepdims=True) * y
    residual = y * (np.einsum("bij,bj->bi", problem.cosines, y) + bent) / gains - 1
    resolution = np.maximum(1, EPS**0.5 * y * y.sum(1, keepdims=True) / gains)
    bad = (weights < 0) | (nonzero & (weights == 0))
    values = np.where(nonzero, np.abs(residual) / resolution, 0)
    return np.where(bad.any(1), np.inf, values.max(1))


def cagrad(
    problem: Scaled, weights: np.ndarray, dual: np.ndarray, c: float = 0.4
) -> np.ndarray:
    """Duality gap of the update ``d`` per unit of ``|d|``, or its distance to the ball.

    ``max_i (g_w.d - g_i.d) / (|g_i| |d|)`` for the dual weights ``w``: zero proves that
    no other update in the ball has a better worst task. Where ``g_w`` or the mean
    gradient vanishes, the update may lie inside the ball.
    """
    num_tasks = weights.shape[1]
    norms, nonzero = problem.norms, problem.nonzero
    largest = norms.max(1, keepdims=True)
    units = norms / np.where(largest > 0, largest, 1)
    mean = units / num_tasks
    pull = weights * units - mean
    z = mean + pull
    products = np.einsum("bij,bj->bi", problem.cosines, z)
    level = np.sum(dual * units * products, axis=1, keepdims=True)
    gaps = level / np.where(nonzero, units, 1) - products
    gap = np.where(nonzero, gaps, 0).max(1) / length(problem, z)

    def norm(v: np.ndarray) -> np.ndarray:
        square = np.einsum("bi,bij,bj->b", v, problem.cosines, v)
        return np.sqrt(np.maximum(square, 0))

    def noise(v: np.ndarray) -> np.ndarray:
        return 4 * EPS**0.5 * np.abs(v).sum(1)

    # The squared length of g_w, hence that of d - g_0, is known to eps times the square
    # of the lengths it is made of.
    radius, moved = c * norm(mean), norm(pull)
    outside = (moved - radius) / np.maximum(radius, 1e-300)
    lengths = np.abs(pull).sum(1) / np.maximum(moved, 1e-100)
    ball = np.where(norm(dual * units) <= noise(dual * units), outside, np.abs(outside))
    ball = ball / np.maximum(1, EPS**0.5 * lengths**2)
    return np.where(norm(mean) <= noise(mean), 0, np.maximum(gap, ball))


def upgrad(problem: Scaled, rows: np.ndarray) -> np.ndarray:
    """Dual-cone conditions of the ``T`` projections ``v_i``, the rows ``(B, T, T)``."""
    num_tasks = rows.shape[1]
    return _dual_cone(problem, rows, np.eye(num_tasks) / num_tasks)


def dualproj(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """Dual-cone conditions of the one projection."""
    num_tasks = weights.shape[1]
    return _dual_cone(problem, weights[:, None], np.full((1, num_tasks), 1 / num_tasks))


def _dual_cone(problem: Scaled, rows: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """For ``u = J'v``: ``v >= bound``, ``g_j.u >= 0``, equal where ``v`` is above.

    Per unit of ``|g_j| |u|``, for every row ``v`` of ``rows (B, R, T)``.
    """
    norms = problem.norms[:, None, :]
    units = norms / np.where(norms.max(2) > 0, norms.max(2), 1)[..., None]
    above = (rows - bound) * units
    z = rows * units
    products = z @ problem.cosines
    squares = np.sum(z * products, axis=2)
    scale = EPS**0.5 * np.abs(z).sum(2)
    size = np.maximum(np.sqrt(np.maximum(squares, 0)), np.maximum(scale, 1e-300))
    # A weight within rounding of its bound counts as on it.
    active = above > 4 * EPS * np.abs(z).sum(2, keepdims=True)
    wrong = np.where(active, np.abs(products), np.maximum(-products, 0))
    conditions = np.where(problem.nonzero[:, None, :], wrong, 0).max(2) / size
    outside = np.maximum(-above, 0).max(2) / np.maximum(np.abs(z).max(2), 1e-300)
    return np.maximum(conditions, outside).max(1)


def resolved(problem: Scaled) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Spectrum of the cosines, which part counts as rank, and whether that is clear.

    Returns:
        Eigenvalues, eigenvectors, kept ``(B, T)``, and clear ``(B,)``: no eigenvalue
        within a factor of 16 of the threshold ``T eps`` times the largest.
    """
    values, vectors = np.linalg.eigh(problem.cosines)
    threshold = values.shape[1] * EPS * values[:, -1:]
    kept = values > threshold
    near = (np.abs(values) > threshold / 16) & (values < 16 * threshold)
    return values, vectors, kept, ~near.any(1)


def imtl_g(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """Spread of the projections ``g.g_i / |g_i|`` (on the range of ``C``), per ``|g|``.

    At Pareto-stationary points, by the documented rule, ``|g|``. NaN where the rank is
    a matter of rounding, so that the pseudo-inverse is not determined, or whether the
    point is stationary (the vanishing combination has a weight of about -1e-3).
    """
    _, vectors, kept, clear = resolved(problem)
    ones = problem.nonzero.astype(float)
    reached = np.einsum("bij,bj->bi", vectors.transpose(0, 2, 1), ones) * kept
    target = np.einsum("bij,bj->bi", vectors, reached)
    null = ones - target
    size = np.linalg.norm(null, axis=1, keepdims=True)
    least = null.min(1) / np.maximum(size[:, 0], 1e-300)
    stationary = (size[:, 0] > 1e-3) & (least >= -1e-3)
    edge = (size[:, 0] > 1e-4) & (least >= -1e-2) & (least <= -1e-5)
    edge |= (size[:, 0] > 1e-4) & (size[:, 0] < 1e-2)
    largest = problem.norms.max(1, keepdims=True)
    z = weights * problem.norms / np.where(largest > 0, largest, 1)
    images = np.einsum("bij,bj->bi", problem.cosines, z)
    fit = np.sum(images * target, axis=1) / np.maximum(np.sum(target**2, axis=1), 1e-30)
    target = np.where(stationary[:, None], 0, fit[:, None] * target)
    residual = np.abs(images - target).max(1) / length(problem, z)
    return np.where(clear & ~edge, residual, np.nan)


def config(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """Spread of the cosines, and ``| |g|^2 - sum_i g_i.g |`` per sum of absolute values.

    NaN where the rank, or whether all gradients cancel, is a matter of rounding.
    """
    _, vectors, kept, clear = resolved(problem)
    ones = problem.nonzero.astype(float)
    reached = np.einsum("bji,bj->bi", vectors, ones) * kept
    target = np.einsum("bij,bj->bi", vectors, reached)
    square = np.sum(target**2, axis=1)
    largest = problem.norms.max(1, keepdims=True)
    units = problem.norms / np.where(largest > 0, largest, 1)
    z = weights * units
    images = np.einsum("bij,bj->bi", problem.cosines, z)
    fit = np.sum(images * target, axis=1) / np.maximum(square, 1e-30)
    size = length(problem, z)
    cosines = np.abs(images - fit[:, None] * target).max(1) / size
    terms = units * images
    total = np.maximum(np.abs(terms).sum(1), size**2)
    lengths = np.abs(np.sum(z * images, axis=1) - terms.sum(1)) / total
    residual = np.maximum(cosines, lengths)
    dead = (weights == 0).all(1)
    edge = EPS**0.5  # the documented limit of what counts as cancelling
    residual = np.where(dead, np.where(square > 2 * edge, np.inf, 0), residual)
    near = (square > edge / 4) & (square < 4 * edge)
    return np.where(clear & ~near, residual, np.nan)


def pcd(problem: Scaled, weights: np.ndarray, tau: float = 0.02) -> np.ndarray:
    """KKT conditions of the first step's projection, and the length of the update.

    Per unit of the projection ``d``: ``x >= 0``, ``u_j.d >= tau``, equal where
    ``x_j > 0``, for unit gradients; ``|g| = |g_p|``. NaN where the secondary gradients
    (nearly) cancel, so that float32 cannot tell whether the constraints contradict
    each other.
    """
    norms, nonzero = problem.norms, problem.nonzero
    primary = nonzero[:, 0]
    divisor = np.where(primary, weights[:, 0] * norms[:, 0], 1)
    z = weights * norms / np.where(divisor > 0, divisor, 1)[:, None]
    slack = np.einsum("bij,bj->bi", problem.cosines, z)[:, 1:] - tau
    active = z[:, 1:] > 4 * EPS * np.abs(z).sum(1, keepdims=True)
    wrong = np.where(active, np.abs(slack), np.maximum(-slack, 0))
    wrong = np.where(nonzero[:, 1:], np.maximum(wrong, -z[:, 1:]), 0)
    size = length(problem, z)
    kkt = wrong.max(1, initial=0) / np.where(size > 0, size, 1)
    scaled_up = np.abs(divisor) / np.where(primary, norms[:, 0], 1) * size - 1
    lengths = np.where(size > EPS**0.25 * np.abs(z).sum(1), np.abs(scaled_up), 0)
    residual = np.where(divisor > 0, np.maximum(kkt, lengths), np.inf)
    stopped = (weights * norms == 0).all(1)
    residual = np.where(primary, residual, np.where(stopped, 0, np.inf))
    among = problem.cosines[:, 1:, 1:]
    identity = np.eye(among.shape[1])
    among = np.where(nonzero[:, 1:, None] & nonzero[:, None, 1:], among, identity)
    # Independent, or with a common descent direction in plain sight: their sum.
    apart = np.linalg.eigvalsh(among).min(1, initial=1) > 1e-3
    agreed = among.sum(2).min(1, initial=1) > 1e-3
    return np.where(apart | agreed | ~primary, residual, np.nan)


def aligned_mtl(problem: Scaled, weights: np.ndarray) -> np.ndarray:
    """Error of the update against a float64 decomposition.

    Per unit of the length that preferences of this size can have, and relative to the
    sensitivity, ``sqrt(eps)`` over the smallest eigenvalue kept, where that is above 1.
    NaN where the rank is a matter of rounding.
    """
    values, vectors, kept, clear = resolved(problem)
    largest = problem.norms.max(1, keepdims=True)
    units = problem.norms / np.where(largest > 0, largest, 1)
    roots = np.sqrt(np.where(kept, values, 0))
    jacobian = roots[:, :, None] * vectors.transpose(0, 2, 1) * units[:, None, :]
    _, sizes, right = np.linalg.svd(jacobian)
    num_tasks = sizes.shape[1]
    rank = kept.sum(1, keepdims=True)
    used = np.arange(num_tasks) < rank
    smallest = np.take_along_axis(sizes, np.maximum(rank - 1, 0), axis=1)
    ratios = np.where(used, smallest / np.where(used, sizes, 1), 0)
    exact = np.einsum("bki,bk->bi", right, ratios * right.sum(2) / num_tasks)
    error = np.einsum("bki,bi->bk", jacobian, weights - exact)
    longest = smallest[:, 0] / num_tasks**0.5
    relative = np.linalg.norm(error, axis=1) / np.maximum(longest, 1e-300)
    least = np.min(np.where(kept, values, np.inf), axis=1)
    relative = relative / np.maximum(1, EPS**0.5 / least)
    return np.where(clear, np.where(rank[:, 0] > 0, relative, 0), np.nan)


cr_mogm = mgda
"""The first step is MGDA's; later ones average what is checked there."""
imtl = imtl_g
"""The learned scales do not change the direction."""
