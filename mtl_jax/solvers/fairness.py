"""Alpha-fair weights of the task gradients: Newton's method on the cosine Gramian."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from mtl_jax._types import Array, Solution, check_range
from mtl_jax.solvers.newton import damped_newton, newton_step
from mtl_jax.solvers.scaling import check_gram, full_precision, scale_gram

FULL = 0.1
"""Largest relative change of a length below which full steps converge quadratically."""


@full_precision
def fair_weights(
    gram: Array, alpha: float | Array, *, max_iterations: int = 100
) -> Solution:
    r"""Solves ``M w = w ** (-1 / alpha)`` for ``w > 0``: the alpha-fair weights.

    With the norms ``d``, the cosines ``C`` and the lengths ``y = d * w`` this is the
    minimum over ``y > 0`` of the convex

    .. math:: f(y) = \tfrac12 y^\top C y - \sum_i d_i^{q - 1} \Phi(y_i)
              + \tfrac14 \epsilon^2 \|y\|^4, \qquad \Phi'(y) = y^{-q}, \quad q = 1/\alpha.

    Newton steps find it from the solution for orthogonal gradients,
    :math:`y_i = d_i^{(q - 1) / (q + 1)}`. Unless ``alpha = 1`` the barrier is not
    self-concordant, so far from the solution a step takes the best of a few lengths along
    a path on which no ``y_i`` changes sign, each after rescaling ``y``. The last term is
    the ridge of :func:`mtl_jax.solvers.nash_weights`: it only counts at Pareto-stationary
    points, where no solution exists.

    Args:
        gram: Gramian ``M = J Jᵀ``, ``(T, T)``.
        alpha: ``> 0``; 1 gives Nash bargaining (``nash_weights`` is faster there), large
            values the direction of the min-norm point, small ones equal weights. Weights
            of tasks that do not count in the min-norm point fall like a power ``alpha``;
            where they would leave the dtype's range (1e-31 of the others in float32) they
            stay there, or are zero.
        max_iterations: bound on the Newton steps, each a ``T x T`` Cholesky.

    Returns:
        ``value`` ``(T,)``, positive; zero for tasks with zero gradient, which the others
        do not see; all ones where ``gram`` is not finite. ``ok`` tells whether Newton's
        method converged, or stagnated where full steps only move rounding errors.

    Raises:
        ValueError: ``gram`` is not square, or an option is out of range.

    >>> weights = fair_weights(jnp.diag(jnp.array([1.0, 8.0])), 0.5).value
    >>> print(*(f"{w:.3f}" for w in weights))
    1.000 0.500

    Reference: Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", 2024,
    arXiv:2402.15638. Its released code calls SciPy's least squares on the raw Gramian.
    """
    gram = check_gram(gram)
    check_range("alpha", alpha, 0, open_low=True)
    check_range("max_iterations", max_iterations, 1)
    dtype, num_tasks = gram.dtype, gram.shape[0]
    tolerance = 4 * float(jnp.finfo(dtype).eps) * num_tasks**0.5
    q = 1 / jnp.asarray(alpha, dtype)
    identity = jnp.eye(num_tasks, dtype=dtype)
    scaled = scale_gram(gram)
    # Unit diagonal: this also decouples the tasks without gradient from the others.
    cosines = jnp.where(identity == 1, identity, scaled.cosines)
    largest = jnp.max(scaled.norms)
    largest = jnp.where(largest > 0, largest, 1)
    power = (q - 1) / (q + 1)
    start = jnp.where(scaled.nonzero, scaled.norms / largest, 1) ** power
    unit = jnp.sqrt(start @ start)
    start = start / unit
    least = jnp.asarray(float(jnp.finfo(dtype).tiny) ** 0.8, dtype)
    ridge = jnp.square(jnp.asarray(1e-10 if dtype == jnp.float64 else 1e-6, dtype))

    def factors_of(x: Array) -> Array:
        """Growth by ``x``, to first order; never below zero."""
        return jnp.where(x < 0, 1 / (1 - jnp.minimum(x, 0)), 1 + x)

    def gains_of(factors: Array) -> Array:
        """Of the barrier when the lengths grow by these factors, in units of b."""
        log = jnp.log(factors)
        curved = jnp.abs(1 - q) > 1e-3
        safe = jnp.where(curved, 1 - q, 1)
        return jnp.where(
            curved, jnp.expm1(safe * log) / safe, log + (1 - q) / 2 * log**2
        )

    def step_from(y: Array) -> tuple[Array, Array]:
        # d^(q-1) y^(1-q) in units in which the start has norm one.
        gains = start**2 * (y / start) ** (1 - q)
        product, norm = cosines @ y, y @ y
        quadratic = jnp.maximum(y @ product, 0)
        total = jnp.sum(gains)
        multiple = jnp.minimum(
            (total / jnp.where(quadratic > 0, quadratic, 1e-30)) ** (1 / (1 + q)),
            (total / (ridge * jnp.square(norm))) ** (1 / (3 + q)),
        )
        y, product, norm = multiple * y, multiple * product, multiple**2 * norm
        gains = multiple ** (1 - q) * gains

        residual = y * (product + ridge * norm * y) - gains
        curvature = cosines + ridge * (norm * identity + 2 * y[:, None] * y[None, :])
        scale = y * lax.rsqrt(gains)
        hessian = q * identity + scale[:, None] * curvature * scale[None, :]
        ratio, _ = newton_step(hessian, residual * lax.rsqrt(gains))
        ratio = ratio * lax.rsqrt(gains)
        # What has left the dtype's range no longer counts, and may stay where it is.
        ratio = jnp.where((y <= 2 * least) & (ratio < 0), 0, ratio)
        change = jnp.max(jnp.abs(ratio))

        # Every length moves on its own scale: a few may have to shrink by many orders.
        shares = (1 / (1 + change)) ** jnp.linspace(1, -0.3, 12, dtype=dtype)
        factors = factors_of(shares[:, None] * ratio[None, :])
        steps = y[None, :] * (factors - 1)
        norms = jnp.sum(jnp.square(y[None, :] * factors), axis=1)
        values = (
            steps @ product
            + jnp.sum(steps * (steps @ cosines), axis=1) / 2
            + ridge / 4 * jnp.square(norms)
            - gains_of(factors) @ gains
        )
        # Close to the solution plain Newton steps: a bent one would leave its square in
        # the directions in which the Hessian is stiff.
        best = jnp.where(change < FULL, 1 + ratio, factors[jnp.argmin(values)])
        return jnp.maximum(y * best, least), change

    solution = damped_newton(
        step_from,
        start,
        full_below=FULL,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    divisors = jnp.where(scaled.nonzero, scaled.norms, 1)
    weights = solution.value / divisors * (unit * largest**power)
    weights = jnp.where(scaled.nonzero, weights, 0)
    finite = scaled.finite & jnp.isfinite(weights).all()
    return Solution(
        jnp.where(finite, weights, 1), solution.ok & finite, solution.iterations
    )
