"""Nash bargaining weights by damped Newton on the cosine Gramian."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from mtl_jax._types import Array, Solution, check_range
from mtl_jax.solvers.active_set import check_gram, scale_gram


class _Loop(NamedTuple):
    beta: Array
    decrement: Array
    iterations: Array
    done: Array


def nash_weights(
    gram: Array, *, ridge: float | Array | None = None, max_iterations: int = 64
) -> Solution:
    r"""Solves ``M alpha = 1 / alpha`` for ``alpha > 0``: the Nash bargaining weights.

    With the norms ``d_i = sqrt(M_ii)``, the cosines ``C_ij = M_ij / (d_i d_j)`` and
    ``beta = d * alpha`` this is the minimum over ``beta > 0`` of the self-concordant

    .. math:: f(\beta) = \tfrac12 \beta^\top C \beta - \sum_i \log \beta_i
              + \tfrac14 \epsilon^2 \|\beta\|^4,

    found by Newton steps damped by ``1 / (1 + lambda)`` while the Newton decrement
    ``lambda`` is large. It is unique even where ``C`` is singular. The combined update
    ``J' alpha`` has norm ``sqrt(T)`` whatever the gradients' norms.

    At a Pareto-stationary point, and only there, ``M alpha = 1 / alpha`` has no
    solution: ``beta`` grows without bound. The last term is a ridge ``epsilon^2
    |beta|^2`` on ``C`` that grows with ``beta``, hence ``|J' alpha|^2 = T - epsilon^2
    |beta|^4``: the update fades to zero once a convex combination of the *normalised*
    gradients is shorter than about ``sqrt(epsilon)``, and elsewhere keeps its accuracy,
    which a constant ridge would cost.

    Differs from the released code, which runs a convex-concave procedure on the
    Gramian divided by its Frobenius norm: it returns wrong weights for identical
    gradients and fails for small ones; this finds the exact solution.

    Args:
        gram: Gramian ``M = J Jᵀ`` of the task gradients, ``(T, T)``.
        ridge: ``epsilon >= 0``; by default 1e-10 in float64 and 1e-6 otherwise, about
            the accuracy of a computed Gramian.
        max_iterations: bound on the Newton steps, each a ``T x T`` Cholesky.

    Returns:
        ``value`` ``(T,)``, ``alpha``; zero for tasks with zero gradient, which the
        others do not see; all ones where ``gram`` is not finite. ``ok`` is true if the
        relative error of ``J' alpha`` is certified to be below 1e-2: the last Newton
        decrement bounds it. In well-posed problems it is near rounding.

    Raises:
        ValueError: ``gram`` is not square, or an option is out of range.

    >>> nash_weights(jnp.diag(jnp.array([4.0, 100.0]))).value
    Array([0.5, 0.1], dtype=float32)

    Reference: Navon et al., "Multi-Task Learning as a Bargaining Game", arXiv
    2202.01017.
    """
    gram = check_gram(gram)
    if ridge is None:
        ridge = 1e-10 if gram.dtype == jnp.float64 else 1e-6
    check_range("ridge", ridge, 0)
    check_range("max_iterations", max_iterations, 1)
    dtype, num_tasks = gram.dtype, gram.shape[0]
    tolerance = 4 * float(jnp.finfo(dtype).eps) * num_tasks**0.5
    squared_ridge = jnp.square(jnp.asarray(ridge, dtype))
    identity = jnp.eye(num_tasks, dtype=dtype)

    scaled = scale_gram(gram)
    # Unit diagonal: also decouples the tasks without gradient from the others.
    cosines = jnp.where(identity == 1, identity, scaled.cosines)

    def body(loop: _Loop) -> _Loop:
        beta = loop.beta
        ridge_now = squared_ridge * jnp.sum(jnp.square(beta))
        residual = beta * (cosines @ beta + ridge_now * beta) - 1
        curvature = cosines + ridge_now * identity
        curvature += 2 * squared_ridge * jnp.outer(beta, beta)
        hessian = identity + beta[:, None] * curvature * beta[None, :]
        factor = lax.linalg.cholesky(hessian, symmetrize_input=False)
        half = lax.linalg.triangular_solve(
            factor, residual[:, None], left_side=True, lower=True
        )
        decrement = jnp.sqrt(jnp.sum(jnp.square(half)))
        step = lax.linalg.triangular_solve(
            factor, half, left_side=True, lower=True, transpose_a=True
        )[:, 0]
        full = decrement < 0.25
        new = beta * (1 - jnp.where(full, 1, 1 / (1 + decrement)) * step)
        # Rounding of an almost stationary Gramian can make the Hessian indefinite.
        valid = jnp.all(jnp.isfinite(new) & (new > 0))
        # Exact full steps at least halve the decrement, so the rest is rounding noise.
        stagnated = full & (decrement > 0.5 * loop.decrement)
        return _Loop(
            jnp.where(valid, new, beta),
            decrement,
            loop.iterations + 1,
            (decrement <= tolerance) | stagnated | ~valid,
        )

    def unfinished(loop: _Loop) -> Array:
        return ~loop.done & (loop.iterations < max_iterations)

    # Solves the equation summed over tasks with equal weights.
    start = jnp.sqrt(num_tasks / jnp.maximum(jnp.sum(cosines), 0.01 * num_tasks))
    loop = lax.while_loop(
        unfinished,
        body,
        _Loop(
            jnp.full((num_tasks,), start, dtype),
            jnp.asarray(jnp.inf, dtype),
            jnp.asarray(0, jnp.int32),
            jnp.asarray(False),
        ),
    )
    alpha = loop.beta / jnp.where(scaled.nonzero, scaled.norms, 1)
    alpha = jnp.where(scaled.nonzero, alpha, 0)
    certified = loop.decrement <= 1e-2 * num_tasks**0.5
    return Solution(
        jnp.where(scaled.finite, alpha, 1),
        certified & scaled.finite,
        loop.iterations,
    )
