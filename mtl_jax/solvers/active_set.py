"""Exact active-set method shared by the min-norm point and CAGrad's dual."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax._types import Array


class ScaledGram(NamedTuple):
    """A Gramian with its row norms taken out, so that every number is of order one.

    ``z_i = w_i n_i / min(n)`` are the scaled weights: ``w = z * inverse_norms``.
    """

    cosines: Array
    """``C_ij = M_ij / (n_i n_j)``, ``(T, T)``, zero in the rows of zero gradients."""
    inverse_norms: Array
    """``min(n) / n_i`` in ``(0, 1]``, ``(T,)``, zero for zero gradients."""
    norms: Array
    """``n_i = sqrt(M_ii)``, ``(T,)``."""
    nonzero: Array
    """Which task gradients are not zero, bool ``(T,)``."""
    finite: Array
    """Whether the whole Gramian is finite, bool ``()``."""


def check_gram(gram: Array) -> Array:
    """Returns ``gram`` in floating point; ``ValueError`` unless it is ``(T, T)``."""
    gram = jnp.asarray(gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] < 1:
        raise ValueError(f"gram must have shape (T, T) with T >= 1, got {gram.shape}")
    return gram.astype(jnp.promote_types(gram.dtype, jnp.float32))


def scale_gram(gram: Array) -> ScaledGram:
    """Splits a Gramian into cosines and norms; a non-finite one becomes the identity."""
    finite = jnp.all(jnp.isfinite(gram))
    gram = jnp.where(finite, gram, jnp.eye(gram.shape[0], dtype=gram.dtype))
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    nonzero = norms > 0
    divisors = jnp.where(nonzero, norms, jnp.inf)
    # Two divisions, because the product of two norms may leave float32's range.
    cosines = gram / divisors[:, None] / divisors[None, :]
    smallest = jnp.min(divisors)
    inverse_norms = jnp.where(nonzero, jnp.where(nonzero.any(), smallest, 1), 0)
    inverse_norms = inverse_norms / jnp.where(nonzero, norms, 1)
    return ScaledGram(cosines, inverse_norms, norms, nonzero, finite)


class _Loop(NamedTuple):
    weights: Array
    support: Array
    value: Array
    best: Array
    ridge: Array
    stalls: Array
    iterations: Array
    done: Array


def minimise_on_simplex(
    gram: ScaledGram, linear: Array, radius: Array, max_iterations: int
) -> tuple[Array, Array]:
    r"""Minimises ``linear'z + radius * sqrt(z'Cz)`` over ``z >= 0, inverse_norms'z = 1``.

    With ``linear = 0`` this is the min-norm point. On a support ``S`` the minimiser over
    the affine hull has a closed form: ``z = p + λq``, where ``p`` is the hull's min-norm
    point and ``q`` moves along the hull against ``linear``; they are orthogonal in ``C``,
    so ``λ² = p'Cp / (radius² - q'Cq)``, and ``λ = ∞`` when that is not positive.

    Starts from all rows; drops every negative weight at once when this lowers the value,
    else the first one met on the way (so the value never rises), and adds back the rows
    that violate the optimality conditions most. Rows that tie move together, which
    keeps the result equivariant under permutations.

    Args:
        gram: scaled Gramian; zero rows never enter the support.
        linear: linear term, ``(T,)``.
        radius: positive scalar.
        max_iterations: bound on the number of ``T x T`` factorisations.

    Returns:
        ``(z, iterations)``; ``z`` is feasible whenever any row is non-zero.
    """
    cosines, inverse_norms, free = gram.cosines, gram.inverse_norms, gram.nonzero
    num_tasks = free.shape[0]
    dtype = cosines.dtype
    eps = float(jnp.finfo(dtype).eps)
    huge = float(jnp.finfo(dtype).max) ** 0.75
    linear_scale = jnp.max(jnp.abs(linear))

    def norm(z):
        return jnp.sqrt(jnp.maximum(z @ (cosines @ z), 0))

    def value_of(z):
        return linear @ z + radius * norm(z)

    def hull_minimiser(support, ridge):
        inside = support[:, None] & support[None, :]
        matrix = jnp.where(inside, cosines, 0)
        diagonal = jnp.where(support, ridge, 1)
        factor = jax.scipy.linalg.cho_factor(matrix + jnp.diag(diagonal), lower=True)
        right = jnp.stack([inverse_norms, linear], axis=1) * support[:, None]
        solved = jax.scipy.linalg.cho_solve(factor, right)
        # One refinement step against the matrix without ridge removes the ridge's bias.
        solved = solved + jax.scipy.linalg.cho_solve(factor, right - matrix @ solved)
        along = inverse_norms @ solved
        p = solved[:, 0] / along[0]
        q = along[1] * p - solved[:, 1]
        square = jnp.stack([p, q]) @ cosines @ jnp.stack([p, q], axis=1)
        # Below these floors a square is rounding error.
        p_square = jnp.maximum(square[0, 0], eps * (p @ p))
        q_square = jnp.maximum(square[1, 1], 0)
        moves = q_square > (8 * num_tasks * eps * linear_scale) ** 2
        gap = radius**2 - jnp.where(moves, q_square, 0)
        step = jnp.where(gap > 0, jnp.sqrt(p_square / jnp.where(gap > 0, gap, 1)), huge)
        target = p + jnp.where(moves, jnp.minimum(step, huge) * q, 0)
        return target, jnp.all(jnp.isfinite(target)) & (along[0] > 0)

    def body(loop: _Loop) -> _Loop:
        z, support = loop.weights, loop.support
        target, solved = hull_minimiser(support, loop.ridge)
        target = jnp.where(solved, target, z)
        negative = support & (target < 0)
        inside = solved & ~negative.any()

        clipped = jnp.maximum(target, 0)
        clipped = clipped / jnp.maximum(inverse_norms @ clipped, 1 / huge)
        clipped_value = value_of(clipped)
        use_clipped = inside | (clipped_value < loop.value)

        ratio = jnp.where(negative, z / jnp.where(negative, z - target, 1), jnp.inf)
        alpha = jnp.minimum(jnp.min(ratio), 1)
        stepped = jnp.maximum(z + alpha * (target - z), 0)
        stepped = jnp.where(ratio <= alpha * (1 + 4 * eps), 0, stepped)
        stepped = stepped / jnp.maximum(inverse_norms @ stepped, 1 / huge)

        new = jnp.where(solved, jnp.where(use_clipped, clipped, stepped), z)
        new_value = jnp.where(use_clipped, clipped_value, value_of(new))
        kept = support & jnp.where(
            use_clipped, target >= 0, ratio > alpha * (1 + 4 * eps)
        )
        kept = jnp.where(solved, kept, support)

        image = cosines @ new
        step = jnp.sqrt(jnp.maximum(new @ image, eps * (new @ new))) / radius
        gradient = step * linear + image
        excess = jnp.where(
            free & ~kept, (new @ gradient) * inverse_norms - gradient, -jnp.inf
        )
        worst = jnp.max(excess)
        tolerance = 4 * eps * (jnp.sum(new) + step * linear_scale)
        added = excess >= jnp.maximum(worst - tolerance, tolerance)
        stalls = loop.stalls + (inside & (new_value >= loop.best))
        return _Loop(
            weights=new,
            support=jnp.where(inside, kept | added, kept),
            value=new_value,
            best=jnp.where(inside, jnp.minimum(loop.best, new_value), loop.best),
            ridge=jnp.where(solved, loop.ridge, 16 * loop.ridge),
            stalls=stalls,
            iterations=loop.iterations + 1,
            done=inside & (~added.any() | (stalls > 3)),
        )

    start = jnp.where(free, 1 / jnp.maximum(jnp.sum(inverse_norms), 1 / huge), 0)
    start = start.astype(dtype)
    loop = _Loop(
        weights=start,
        support=free,
        value=value_of(start),
        best=jnp.asarray(jnp.inf, dtype),
        ridge=jnp.asarray(4 * num_tasks * eps, dtype),
        stalls=jnp.zeros((), jnp.int32),
        iterations=jnp.zeros((), jnp.int32),
        done=~free.any(),
    )
    loop = jax.lax.while_loop(
        lambda loop: ~loop.done & (loop.iterations < max_iterations), body, loop
    )
    return loop.weights, loop.iterations
