"""Nash bargaining weights by damped Newton on the cosine Gramian."""

from __future__ import annotations

import jax.numpy as jnp

from mtl_jax._types import Array, Solution, check_range
from mtl_jax.solvers.newton import damped_newton, newton_step
from mtl_jax.solvers.scaling import check_gram, full_precision, scale_gram

FULL = 0.25
"""Newton decrement below which full steps converge quadratically."""


@full_precision
def nash_weights(
    gram: Array, *, ridge: float | Array | None = None, max_iterations: int = 64
) -> Solution:
    r"""Solves ``M alpha = 1 / alpha`` for ``alpha > 0``: the Nash bargaining weights.

    With the norms ``d_i = sqrt(M_ii)``, the cosines ``C_ij = M_ij / (d_i d_j)`` and
    ``beta = d * alpha`` this is the minimum over ``beta > 0`` of the self-concordant

    .. math:: f(\beta) = \tfrac12 \beta^\top C \beta - \sum_i \log \beta_i
              + \tfrac14 \epsilon^2 \|\beta\|^4,

    which is unique even where ``C`` is singular. Newton steps find it: full ones once
    the Newton decrement ``lambda`` is small; before, the best of a few lengths from the
    damped ``1 / (1 + lambda)``, whose convergence is guaranteed, to almost the
    boundary; each after the best rescaling of ``beta``. About ten steps suffice.
    The combined update ``J' alpha`` has norm ``sqrt(T)`` whatever the gradients' norms.

    At a Pareto-stationary point, and only there, ``M alpha = 1 / alpha`` has no
    solution: ``beta`` grows without bound. The last term is a ridge ``epsilon^2
    |beta|^2`` on ``C`` that grows with ``beta``, hence ``|J' alpha|^2 = T - epsilon^2
    |beta|^4``: the update fades to zero once a convex combination of the *normalised*
    gradients is shorter than about ``sqrt(epsilon)``, and elsewhere keeps the accuracy
    that a constant ridge would cost.

    Differs from the released code, which runs a convex-concave procedure on the
    Gramian divided by its Frobenius norm: it returns wrong weights for identical
    gradients and fails for small ones; this finds the exact solution.

    Args:
        gram: Gramian ``M = J Jᵀ`` of the task gradients, ``(T, T)``.
        ridge: ``epsilon >= 0``; by default 1e-10 in float64 and 1e-6 otherwise, a
            little above the error of a computed ``C``.
        max_iterations: bound on the Newton steps, each a ``T x T`` Cholesky.

    Returns:
        ``value`` ``(T,)``, ``alpha``; zero for tasks with zero gradient, which the
        others do not see; all ones where ``gram`` is not finite. ``ok`` tells whether
        Newton's method converged, or stagnated (near stationarity) where full steps
        no longer reduce rounding errors; the last ``lambda`` bounds ``|J' (alpha -
        alpha*)|``.

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
    # Unit diagonal: this also decouples the tasks without gradient from the others.
    cosines = jnp.where(identity == 1, identity, scaled.cosines)

    def step_from(beta: Array) -> tuple[Array, Array]:
        # The best multiple of beta, in closed form, spares the many small damped steps
        # by which beta would grow near stationarity.
        product = cosines @ beta
        quadratic = jnp.maximum(beta @ product, 0)
        quartic = squared_ridge * jnp.square(beta @ beta)
        root = jnp.sqrt(jnp.square(quadratic) + 4 * num_tasks * quartic)
        multiple = jnp.sqrt(2 * num_tasks / (quadratic + root))
        beta, product = multiple * beta, multiple * product

        norm = beta @ beta
        residual = beta * (product + squared_ridge * norm * beta) - 1
        curvature = cosines + squared_ridge * (
            norm * identity + 2 * beta[:, None] * beta[None, :]
        )
        hessian = identity + beta[:, None] * curvature * beta[None, :]
        ratio, decrement = newton_step(hessian, residual)
        step = beta * ratio

        damped = 1 / (1 + decrement)
        longest = jnp.maximum(damped, 0.99 / jnp.maximum(jnp.max(-ratio), 1e-3))
        lengths = damped * (longest / damped) ** jnp.linspace(0, 1, 12, dtype=dtype)
        norms = norm + 2 * lengths * (beta @ step) + lengths**2 * (step @ step)
        values = (
            lengths * (step @ product)
            + lengths**2 / 2 * (step @ (cosines @ step))
            + squared_ridge / 4 * norms**2
            - jnp.sum(jnp.log1p(lengths[:, None] * ratio[None, :]), axis=1)
        )
        length = jnp.where(decrement < FULL, 1, lengths[jnp.argmin(values)])
        return beta + length * step, decrement

    solution = damped_newton(
        step_from,
        jnp.ones((num_tasks,), dtype),
        full_below=FULL,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    alpha = solution.value / jnp.where(scaled.nonzero, scaled.norms, 1)
    alpha = jnp.where(scaled.nonzero, alpha, 0)
    return Solution(
        jnp.where(scaled.finite, alpha, 1),
        solution.ok & scaled.finite,
        solution.iterations,
    )
