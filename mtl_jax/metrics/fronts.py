"""Dominance between points in objective space, and distances between fronts, in NumPy.

All objectives are minimised. Everything compares every point with every other one, in
blocks of bounded memory: 10,000 points take a second or two.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def non_dominated(
    points: ArrayLike, *, strict: bool = False, tolerance: float = 1e-8
) -> np.ndarray:
    r"""Marks the points that no other point dominates.

    With :math:`d = f(x) - f(y)`, entries below ``tolerance`` in size counting as zero,

    .. math:: y \text{ dominates } x \iff d \ge 0 \text{ and } d \ne 0,
        \qquad y \text{ strictly dominates } x \iff d_i > 0 \;\forall i.

    Weak marks (``strict=False``) are the Pareto front of the set; strict ones also keep
    points that are worse in some objectives and equal in the others. Duplicates, also
    those within the tolerance, do not dominate each other: all of them are kept, or none.

    Args:
        points: objectives, ``(n, m)``, finite; ``n`` may be 0.
        strict: drop only points that are worse in all objectives at once.
        tolerance: differences smaller than this are none. ``0`` compares exactly; with
            a tolerance the relation is not transitive, so keep it far below the spacing
            of the points (three points can then even dominate each other in a circle).

    Returns:
        bool ``(n,)``.

    Raises:
        ValueError: for points that are not a finite ``(n, m)`` array, or a negative
            tolerance.

    The weak rule with 1e-8 is the released helper's; its Figure 4 uses the strict one,
    exactly.

    Examples:
        >>> points = [[0, 2], [1, 1], [2, 1], [2, 2], [1, 1]]
        >>> print(non_dominated(points))
        [ True  True False False  True]
        >>> print(non_dominated(points, strict=True))  # (2, 1) equals (1, 1) in f2
        [ True  True  True False  True]

    References:
        Ma, Du and Matusik, *Efficient Continuous Pareto Exploration in Multi-Task
        Learning*, 2020, arXiv:2006.16434
    """
    values = check_points("points", points)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be a number >= 0, got {tolerance!r}")

    def dominated(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        least, most = _extreme_differences(x, y)
        for extreme in (least, most):
            extreme[np.abs(extreme) < tolerance] = 0
        worse = least > 0 if strict else (least >= 0) & (most > 0)
        return np.any(worse, axis=1)

    return ~_by_blocks(dominated, values, values).astype(bool)


def epsilon_non_dominated(points: ArrayLike, epsilon: ArrayLike) -> np.ndarray:
    r"""Marks the points that no other point beats by more than ``epsilon``.

    Point :math:`i` is dropped if some :math:`j` has
    :math:`f_j \le f_i - \varepsilon` in all objectives and :math:`<` in one. So a larger
    :math:`\varepsilon` keeps more points: those within :math:`\varepsilon` of the front.
    (The additive ε-dominance of Laumanns et al. has the opposite sign and keeps fewer.)
    With zero it is the weak rule of :func:`non_dominated`, compared exactly. Duplicates
    do not drop each other.

    Args:
        points: objectives, ``(n, m)``, finite.
        epsilon: one number, or one per objective ``(m,)``, not negative. The released
            code makes it a multiple of the smallest value of each objective, which is
            ``multiple * np.min(points, axis=0)``, and uses 0.

    Returns:
        bool ``(n,)``.

    Raises:
        ValueError: for points that are not a finite ``(n, m)`` array, or an epsilon that
            is negative, not finite or of another shape.

    Examples:
        >>> points = [[0.0, 1.0], [1.0, 0.0], [0.3, 1.2], [0.5, 1.5]]
        >>> print(epsilon_non_dominated(points, 0))
        [ True  True False False]
        >>> print(epsilon_non_dominated(points, 0.25))
        [ True  True  True False]

    References:
        Hotegni et al., *Multi-Objective Optimization for Sparse Deep Multi-Task
        Learning*, 2023, arXiv:2308.12243
    """
    values = check_points("points", points)
    margin = np.asarray(epsilon, float)
    if margin.shape not in ((), values.shape[1:]):
        raise ValueError(
            f"epsilon must be one number or {values.shape[1]}, one per objective, got "
            f"shape {margin.shape}"
        )
    if not (np.isfinite(margin) & (margin >= 0)).all():
        raise ValueError(f"epsilon must be finite and not negative, got {epsilon!r}")

    def beaten(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        least, most = _extreme_differences(x - margin, y)
        return np.any((least >= 0) & (most > 0), axis=1)

    return ~_by_blocks(beaten, values, values).astype(bool)


def coverage(a: ArrayLike, b: ArrayLike) -> float:
    r"""Share of the points of ``b`` that some point of ``a`` weakly dominates.

    .. math:: C(A, B) = |\{b \in B : \exists a \in A, \; a \le b\}| \, / \, |B|

    One means that ``a`` is at least as good as ``b`` everywhere. ``coverage(a, b)`` and
    ``coverage(b, a)`` need not add up to one. Equal points cover each other, and
    duplicates count as often as they occur in ``b``. Comparisons are exact.

    Args:
        a: objectives ``(n, m)``, finite; ``n`` may be 0.
        b: objectives ``(k, m)``, finite, ``k >= 1``.

    Returns:
        The share, in ``[0, 1]``.

    Raises:
        ValueError: for arrays that are not finite, of other shapes, or an empty ``b``.

    Examples:
        >>> coverage([[0, 2], [1, 1]], [[0, 3], [1, 1], [2, 0], [3, 0]])
        0.5

    References:
        Zitzler and Thiele, *Multiobjective Evolutionary Algorithms*, IEEE Transactions
        on Evolutionary Computation 3 (1999) 257-271
    """
    better, worse = _two_fronts("a", a, "b", b)
    if not len(better):
        return 0.0

    def covered(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.any(_extreme_differences(y, x)[0] >= 0, axis=1)

    return float(_by_blocks(covered, worse, better).mean())


def front_gap(points: ArrayLike, front: ArrayLike) -> np.ndarray:
    r"""Euclidean distance of each point to the nearest point of a front.

    .. math:: \operatorname{gap}_i = \min_{z \in Z} \; \|f_i - z\|_2

    The mean of ``front_gap(points, front)`` is the generational distance, that of
    ``front_gap(front, points)`` the inverted one. The front is a set of points: gaps
    below their spacing measure the sampling of the front.

    Args:
        points: objectives ``(n, m)``, finite; ``n`` may be 0.
        front: points of the front ``(k, m)``, finite, ``k >= 1``.

    Returns:
        float64 ``(n,)``.

    Raises:
        ValueError: for arrays that are not finite, of other shapes, or an empty front.

    Examples:
        >>> print(front_gap([[3.0, 4.0], [1.0, 0.5]], [[0.0, 0.0], [1.0, 0.0]]))
        [4.47213595 0.5       ]
    """
    values, targets = _two_fronts("points", points, "front", front)

    def nearest(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(x - z).sum(-1).min(1))

    return _by_blocks(nearest, values, targets)


def additive_epsilon(points: ArrayLike, front: ArrayLike) -> float:
    r"""Least amount by which all objectives of ``points`` must fall to cover ``front``.

    .. math:: \max_{z \in Z} \; \min_{f \in F} \; \max_i \; (f_i - z_i)

    The additive ε-indicator: zero for a front that weakly dominates the other one and
    touches it, negative for one that is better throughout. Unlike the mean of
    :func:`front_gap`, it never prefers a front that is worse in the Pareto sense.

    Args:
        points: objectives ``(n, m)``, finite, ``n >= 1``.
        front: points to cover ``(k, m)``, finite, ``k >= 1``.

    Returns:
        The indicator; smaller is better.

    Raises:
        ValueError: for arrays that are not finite, of other shapes, or empty.

    Examples:
        >>> additive_epsilon([[0.0, 2.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.5]])
        1.0

    References:
        Zitzler et al., *Performance Assessment of Multiobjective Optimizers*, IEEE
        Transactions on Evolutionary Computation 7 (2003) 117-132
    """
    values, targets = _two_fronts("points", points, "front", front)
    if not len(values):
        raise ValueError("points is empty: no shift makes nothing cover the front")

    def shift(z: np.ndarray, f: np.ndarray) -> np.ndarray:
        return _extreme_differences(f, z)[1].min(axis=1)

    return float(_by_blocks(shift, targets, values).max())


def check_points(name: str, points: ArrayLike) -> np.ndarray:
    """Returns the points as float64 ``(n, m)``; ``ValueError`` unless they are finite."""
    values = np.asarray(points, float)
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(
            f"{name} must have shape (n, m), one row of m objectives per point, got "
            f"shape {values.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if bad.size:
        raise ValueError(
            f"{name} must be finite, but row {bad[0]} is {values[bad[0]].tolist()}: "
            "leave points that diverged out"
        )
    return values


def _two_fronts(
    name: str, points: ArrayLike, other_name: str, others: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays with equally many objectives, the second one not empty."""
    values, targets = check_points(name, points), check_points(other_name, others)
    if values.shape[1] != targets.shape[1]:
        raise ValueError(
            f"{name} and {other_name} must have equally many objectives, got shapes "
            f"{values.shape} and {targets.shape}"
        )
    if not len(targets):
        raise ValueError(f"{other_name} is empty: it needs at least one point")
    return values, targets


def _extreme_differences(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest entry of ``x - y`` over the objectives, the last axis.

    One objective at a time: reductions over so short an axis are many times slower.
    """
    least = x[..., 0] - y[..., 0]
    most = least.copy()
    for index in range(1, x.shape[-1]):
        difference = x[..., index] - y[..., index]
        np.minimum(least, difference, out=least)
        np.maximum(most, difference, out=most)
    return least, most


def _by_blocks(
    rule: Callable[[np.ndarray, np.ndarray], np.ndarray],
    rows: np.ndarray,
    others: np.ndarray,
) -> np.ndarray:
    """``rule(rows (b, 1, m), others (1, k, m)) -> (b,)``, for all rows, block by block."""
    size = max(1, 2**22 // max(1, others.size))
    blocks = [
        rule(rows[start : start + size, None], others[None])
        for start in range(0, len(rows), size)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0)
