"""Nearest point of a cone or polyhedron given by task gradients: an active-set method."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from mtl_jax._types import Array, Solution
from mtl_jax.solvers.scaling import check_gram, full_precision, scale_gram


class _Loop(NamedTuple):
    """State of the ``K`` problems, which lie on the last axis: XLA vectorises it."""

    tableau: Array  # (T, T, K), C swept on the free set but for column and diagonal
    column: Array  # (T, K), with the next the last sweep's update, still to subtract:
    scaled_column: Array  # kept here because fused into the sweep they cost 3 times it
    diagonal: Array  # (T, K), the swept diagonal
    gradient: Array  # (T, K), C(x + anchor) off the free set, minus the target x on it
    excess: Array  # (T, K), x: feasible, only free entries are positive
    free: Array  # (T, K), bool
    iterations: Array
    moved: Array


@full_precision
def dual_cone_weights(gram: Array, lower: Array) -> Solution:
    r"""Minimises ``v' G v`` over ``v >= lower`` exactly, for many bounds at once.

    The combination ``J' v`` is the projection of ``J' lower`` onto the dual cone ``{u :
    J u >= 0}``: the nearest update that conflicts with no task. UPGrad projects each
    gradient (``lower = diag(preference)``) and adds the rows; DualProj projects the
    preferred combination (``lower = preference``).

    With the cosines ``C`` and the excess ``x = d * (v - lower)`` this is ``min x'Cx +
    2 x'C(d * lower)`` over ``x >= 0``, solved by Lawson and Hanson's active-set method,
    whose objective falls at every step. All ``K`` problems move together: a step adds
    to each one's free set the task most in conflict, or drops the first one that would
    turn negative, by one sweep (a rank-one update) of its tableau. A step of iterative
    refinement against ``C`` ends it. A task whose gradient depends on free ones is in
    no conflict, so those within rounding of it are kept out: this picks one of the
    minimisers when ``G`` is singular, which all have the same ``J' v``.

    Differs from TorchJD, which adds ``1e-4 I`` to the Gramian divided by its trace:
    the answer here is neither biased by a regulariser nor changed by a common factor.

    Args:
        gram: Gramian ``G = J Jᵀ`` of the task gradients, ``(T, T)``.
        lower: lower bounds, ``(T,)`` or ``(K, T)`` for ``K`` problems.

    Returns:
        ``value`` shaped like ``lower``; equal to ``lower`` for tasks with zero
        gradient, and everywhere if an argument is not finite. ``ok`` is true if every
        problem satisfies the optimality conditions ``v >= lower``, ``Gv >= 0``, ``(v -
        lower)'Gv = 0`` to within rounding (``eps^(3/4)`` of the lengths of the vectors
        combined; a Gramian too close to singular for its precision can miss this).
        ``iterations`` counts the shared steps: the largest free set and a few more.

    Raises:
        ValueError: ``gram`` is not square or ``lower`` does not match it.

    >>> gram = jnp.array([[1.0, -2.0], [-2.0, 16.0]])
    >>> dual_cone_weights(gram, jnp.array([1.0, 0.0])).value
    Array([1.   , 0.125], dtype=float32)

    References: Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization",
    arXiv 2406.16232; Lawson and Hanson, "Solving Least Squares Problems", 1974.
    """
    gram = check_gram(gram)
    lower = jnp.asarray(lower, gram.dtype)
    num_tasks = gram.shape[0]
    if lower.ndim not in (1, 2) or lower.shape[-1] != num_tasks:
        raise ValueError(
            f"lower must have shape (T,) or (K, T) with T = {num_tasks} as in gram, "
            f"got {lower.shape}"
        )
    eps = float(jnp.finfo(gram.dtype).eps)
    scaled = scale_gram(gram)
    diagonal = jnp.eye(num_tasks, dtype=bool)
    cosines = jnp.where(diagonal, 1, scaled.cosines)

    # Norms relative to the largest, then bounds of order one: no product overflows.
    norms = jnp.where(scaled.nonzero, scaled.norms / jnp.max(scaled.norms), 1)[:, None]
    bounds = jnp.atleast_2d(lower).T
    finite = scaled.finite & jnp.all(jnp.isfinite(bounds))
    usable = jnp.broadcast_to(scaled.nonzero[:, None] & finite, bounds.shape)
    anchor = jnp.where(usable, bounds * norms, 0)
    scale = jnp.max(jnp.abs(anchor), axis=0, keepdims=True)
    anchor = anchor / jnp.where(scale > 0, scale, 1)

    def gradient_at(excess: Array) -> Array:
        return jnp.matmul(cosines, anchor + excess, precision="highest")

    size = jnp.sum(jnp.abs(anchor), axis=0, keepdims=True)
    excess, iterations = minimise_over_orthant(cosines, gradient_at, size)
    gradient = gradient_at(excess)
    noise = eps**0.75 * jnp.sum(jnp.abs(anchor) + excess, axis=0, keepdims=True)
    slack = jnp.where(excess > 0, -jnp.abs(gradient), gradient)
    value = bounds + jnp.where(usable, excess * (scale / norms), 0)
    finite &= jnp.all(jnp.isfinite(value))
    return Solution(
        jnp.where(finite, value, bounds).T.reshape(lower.shape),
        finite & jnp.all(slack >= -noise),
        iterations,
    )


@full_precision
def least_distance(cosines: Array, lower: Array) -> Solution:
    r"""The shortest ``d`` with :math:`\langle u_j, d \rangle \ge b_j`, for unit vectors.

    Lawson and Hanson's least distance programming: with ``z >= 0`` that minimises
    :math:`\|\sum_j z_j (u_j, b_j) - (0, 1)\|^2`, the nearest point is
    :math:`d = \sum_j x_j u_j` with :math:`x = z / (1 - \langle b, z \rangle)`, and the
    constraints contradict each other where the divisor, the least value, vanishes. In
    that form vectors that depend on those active are in no conflict, as the solver needs.

    Args:
        cosines: ``C`` of the unit vectors, ``(T, T)``, unit diagonal.
        lower: ``b``, ``(T,)``.

    Returns:
        ``value`` is ``x >= 0``, ``(T,)``; ``ok`` is true if ``C x >= b`` to within
        rounding: ``4 sqrt(eps)`` of ``|d|`` and the largest bound, since vectors nearer
        than that to the span of those active are not told from it. Constraints that only
        vectors over ``eps^(-3/8)`` times as long as the largest bound meet (400 in
        float32) count as contradictory.

    >>> least_distance(jnp.eye(2), jnp.array([-1.0, 2.0])).value
    Array([0., 2.], dtype=float32)

    Reference: Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23.
    """
    scale = jnp.max(jnp.abs(lower), initial=0)
    bounds = (lower / jnp.where(scale > 0, scale, 1))[:, None]
    lengths = jnp.sqrt(1 + jnp.square(bounds))
    extended = (cosines + bounds * bounds.T) / (lengths * lengths.T)

    def gradient_at(x: Array) -> Array:
        z = x / lengths
        left = 1 - jnp.sum(bounds * z, axis=0, keepdims=True)
        return (cosines @ z - bounds * left) / lengths

    x, iterations = minimise_over_orthant(
        extended, gradient_at, jnp.ones((1, 1), cosines.dtype)
    )
    z = x / lengths
    left = 1 - jnp.sum(bounds * z)
    eps = float(jnp.finfo(cosines.dtype).eps)
    # The residual's length is sqrt(left): so much is a barred vector's product with it.
    noise = 4 * jnp.sqrt(eps * jnp.maximum(left, 0)) + eps**0.75
    ok = (left > eps**0.75) & jnp.all(gradient_at(x) >= -noise)
    return Solution(z[:, 0] * scale / jnp.where(ok, left, 1), ok, iterations)


def minimise_over_orthant(
    cosines: Array, gradient_at: Callable[[Array], Array], size: Array
) -> tuple[Array, Array]:
    """Minimises ``x'Cx + 2 x'h`` over ``x >= 0``, for many linear terms ``h`` at once.

    Args:
        cosines: ``C``, ``(T, T)``, unit diagonal.
        gradient_at: ``x (T, K) -> Cx + h (T, K)``, computed as accurately as ``h`` allows.
        size: ``(1, K)``, what rounding errors in ``h`` are relative to.

    Returns:
        ``x`` ``(T, K)`` and the number of shared steps. ``h`` must be ``C`` times some
        vector: else the search can end where ``gradient_at(x)`` has a negative entry.
    """
    num_tasks, count = cosines.shape[0], size.shape[1]
    dtype = cosines.dtype
    eps = float(jnp.finfo(dtype).eps)
    conflict_floor = 8 * eps * size
    dependence_floor = 16 * eps
    max_iterations = 4 * num_tasks + 10
    index = lax.broadcasted_iota(jnp.int32, (num_tasks, count), 0)

    def body(loop: _Loop) -> _Loop:
        tableau, column, scaled_column, diagonal, gradient, x, free, _, _ = loop
        tableau = tableau - column[:, None, :] * scaled_column[None, :, :]
        target = jnp.where(free, -gradient, 0)
        negative = free & (target < 0)
        feasible = ~jnp.any(negative, axis=0, keepdims=True)

        # One key chooses the pivot: the first free task to turn negative on the way to
        # the target (key in [-2, -1]), or the task most in conflict at the target.
        barred = free | (diagonal < dependence_floor)
        conflict = jnp.where(barred, 0, jnp.minimum(gradient + conflict_floor, 0))
        ratio = x / jnp.where(negative, x - target, 1)
        key = jnp.where(feasible, conflict, jnp.where(negative, ratio - 2, 0))
        lowest = jnp.min(key, axis=0, keepdims=True)
        first = jnp.min(
            jnp.where(key == lowest, index, num_tasks - 1), axis=0, keepdims=True
        )
        moves = lowest < 0
        pivot = (index == first) & moves

        x = jnp.where(feasible, target, x + (lowest + 2) * (target - x))
        x = jnp.where(pivot & free, 0, jnp.maximum(x, 0))

        # The symmetric sweep and its inverse differ by a sign; both are one rank-one
        # update once the pivot's own entry of the column is shifted by it.
        sign = jnp.where(free, -1, 1).astype(dtype)
        at_pivot = jnp.sum(jnp.where(pivot, diagonal, 0), axis=0, keepdims=True)
        inverse = jnp.where(moves, 1 / jnp.where(moves, at_pivot, 1), 0)
        column = jnp.take_along_axis(tableau, first[:, None, :], axis=0)[0]
        column = jnp.where(pivot, at_pivot - sign, column)
        scaled_column = column * inverse
        at_pivot = jnp.sum(jnp.where(pivot, gradient, 0), axis=0, keepdims=True)
        return _Loop(
            tableau,
            column,
            scaled_column,
            diagonal - column * scaled_column - jnp.where(pivot, 2 * sign, 0),
            gradient - scaled_column * at_pivot,
            x,
            free ^ pivot,
            loop.iterations + 1,
            jnp.any(moves),
        )

    def unfinished(loop: _Loop) -> Array:
        return loop.moved & (loop.iterations < max_iterations)

    zeros = jnp.zeros((num_tasks, count), dtype)
    gradient = gradient_at(zeros)
    loop = lax.while_loop(
        unfinished,
        body,
        _Loop(
            jnp.broadcast_to(cosines[:, :, None], (num_tasks, num_tasks, count)),
            zeros,
            zeros,
            jnp.ones_like(gradient),
            gradient,
            zeros,
            jnp.zeros(gradient.shape, bool),
            jnp.asarray(0, jnp.int32),
            jnp.asarray(True),
        ),
    )

    # The tableau holds minus the inverse on the free set: refine with a fresh gradient
    # (unless the loop was cut short, when the last sweep is missing).
    fresh = jnp.where(loop.free & ~loop.moved, gradient_at(loop.excess), 0)

    def add_column(task: Array, total: Array) -> Array:
        column = jnp.where(index == task, loop.diagonal, loop.tableau[task])
        return total + column * fresh[task][None, :]

    refined = lax.fori_loop(0, num_tasks, add_column, loop.excess)
    return jnp.maximum(jnp.where(loop.free, refined, 0), 0), loop.iterations
