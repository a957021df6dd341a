"""Exact active-set method shared by the min-norm point and CAGrad's dual."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax.linalg import cholesky, triangular_solve

from mtl_jax._types import Array
from mtl_jax.solvers.scaling import ScaledGram


class _Loop(NamedTuple):
    z: Array
    step: Array
    support: Array
    value: Array
    best: Array
    ridge: Array
    stalls: Array
    iterations: Array
    done: Array


def minimise_on_simplex(
    gram: ScaledGram, linear: Array, radius: Array, max_iterations: int
) -> tuple[Array, Array, Array]:
    r"""Minimises ``linear'z + radius * sqrt(z'Cz)`` over ``z >= 0, inverse_norms'z = 1``.

    With ``linear = 0`` this is the min-norm point. On a support ``S`` the minimiser over
    the affine hull has a closed form: ``z = p + λq``, where ``p`` is the hull's min-norm
    point and ``q`` moves along the hull against ``linear``; they are orthogonal in ``C``,
    so ``λ² = p'Cp / (radius² - q'Cq)``, and ``λ = ∞`` when that is not positive.

    Starts from all rows; drops every negative weight at once when this lowers the value,
    else the first ones met on the way (so the value never rises); then adds back all
    rows that violate the optimality conditions. Nothing depends on the rows' order, so
    the result is equivariant under permutations.

    Args:
        gram: scaled Gramian; zero rows never enter the support.
        linear: linear term, ``(T,)``.
        radius: positive scalar.
        max_iterations: bound on the number of ``T x T`` factorisations.

    Returns:
        ``(z, λ, iterations)``. ``z`` is feasible whenever any row is non-zero; ``λ`` is
        ``sqrt(z'Cz) / radius`` at the optimum, and still meaningful where ``z'Cz`` is
        zero to working precision.
    """
    cosines, inverse_norms, free = gram.cosines, gram.inverse_norms, gram.nonzero
    num_tasks, dtype = free.shape[0], cosines.dtype
    eps = float(jnp.finfo(dtype).eps)
    tiny = float(jnp.finfo(dtype).tiny)
    huge = float(jnp.finfo(dtype).max) ** 0.75
    identity = jnp.eye(num_tasks, dtype=dtype)
    rows = jnp.stack([inverse_norms, linear])
    # Everything that is wanted of a candidate comes out of one product.
    columns = jnp.concatenate([cosines, rows.T, jnp.ones_like(rows[:1]).T], axis=1)
    linear_scale = jnp.max(jnp.abs(linear))
    q_floor = (8 * num_tasks * eps * linear_scale) ** 2  # q'Cq below is rounding

    def hull_minimiser(support, ridge):
        mask = support.astype(dtype)
        matrix = cosines * mask[:, None] * mask[None, :]
        factor = cholesky(
            matrix + identity * jnp.where(support, ridge, 1)[:, None],
            symmetrize_input=False,
        )

        def solve(right):
            half = triangular_solve(factor, right, left_side=True, lower=True)
            return triangular_solve(
                factor, half, left_side=True, lower=True, transpose_a=True
            )

        right = rows.T * mask[:, None]
        solved = solve(right)
        # One refinement step against the matrix without ridge removes the ridge's bias.
        solved = solved + solve(right - matrix @ solved)
        along = inverse_norms @ solved
        p_square = 1 / along[0]
        slope = along[1] * p_square
        p = solved[:, 0] * p_square
        q = solved[:, 0] * slope - solved[:, 1]
        q_square = q @ (matrix @ q)  # -linear'q too, but that cancels for small q
        q_square = jnp.where(q_square > q_floor, q_square, 0)
        gap = jnp.maximum(radius**2 - q_square, tiny)
        step = jnp.minimum(jnp.sqrt(p_square / gap), huge)
        target = p + jnp.where(q_square > 0, step * q, 0)
        level = p_square + step * slope
        return target, step, level, along[0] > 0

    def body(loop: _Loop) -> _Loop:
        z, support = loop.z, loop.support
        target, step, level, solved = hull_minimiser(support, loop.ridge)
        target = jnp.where(solved, target, z)
        negative = target < 0
        ratio = jnp.where(negative, z / jnp.where(negative, z - target, 1), jnp.inf)
        alpha = jnp.min(ratio, initial=1)
        inside = alpha >= 1
        first = negative & (ratio <= alpha * (1 + 4 * eps))

        # Row 0: all negative weights dropped. Row 1: only the first one(s) met.
        stepped = jnp.where(first, 0, z + alpha * (target - z))
        candidates = jnp.maximum(jnp.stack([target, stepped]), 0)
        largest = jnp.max(candidates, axis=1, keepdims=True)  # squares may overflow
        candidates = candidates / jnp.maximum(largest, tiny)
        images = candidates @ columns
        squares = jnp.sum(candidates * images[:, :num_tasks], axis=1)
        totals = images[:, num_tasks]
        values = images[:, num_tasks + 1] + radius * jnp.sqrt(jnp.maximum(squares, 0))
        values = values / totals
        jump = inside | (values[0] < loop.value)
        pick = jnp.where(jump, 0, 1)
        total = totals[pick]
        new = jnp.where(total > 0, candidates[pick] / total, z)
        image = images[pick] / total
        kept = support & ~jnp.where(jump, negative, first)

        excess = level * inverse_norms - step * linear - image[:num_tasks]
        excess = jnp.where(free & ~kept, excess, 0)
        tolerance = 4 * eps * (image[-1] + step * linear_scale)
        added = inside & solved & (excess > tolerance)
        stalls = jnp.where(values[0] < loop.best, 0, loop.stalls + 1)
        stalls = jnp.where(inside & solved, stalls, loop.stalls)
        return _Loop(
            z=new,
            step=jnp.where(inside & solved, step, loop.step),
            support=kept | added,
            value=values[pick],
            best=jnp.where(inside, jnp.minimum(values[0], loop.best), loop.best),
            ridge=jnp.where(solved, loop.ridge, 16 * loop.ridge),
            stalls=stalls,
            iterations=loop.iterations + 1,
            done=inside & solved & ((jnp.max(excess) <= tolerance) | (stalls > 3)),
        )

    start = free / jnp.maximum(jnp.sum(inverse_norms), tiny)
    loop = _Loop(
        z=start,
        step=jnp.zeros((), dtype),
        support=free,
        value=jnp.asarray(jnp.inf, dtype),
        best=jnp.asarray(jnp.inf, dtype),
        ridge=jnp.asarray(max(4 * num_tasks, 32) * eps, dtype),
        stalls=jnp.zeros((), jnp.int32),
        iterations=jnp.zeros((), jnp.int32),
        done=~free.any(),
    )
    loop = jax.lax.while_loop(
        lambda loop: ~loop.done & (loop.iterations < max_iterations), body, loop
    )
    return loop.z, loop.step, loop.iterations
