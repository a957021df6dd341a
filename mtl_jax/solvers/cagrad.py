"""CAGrad's dual problem on the simplex, solved exactly from the Gramian."""

from __future__ import annotations

import jax.numpy as jnp

from mtl_jax._types import Array, Solution, check_range
from mtl_jax.solvers.active_set import minimise_on_simplex
from mtl_jax.solvers.scaling import check_gram, full_precision, scale_gram


def cagrad_weights(gram: Array, c: float | Array) -> Solution:
    r"""Simplex weights of CAGrad's dual.

    .. math::
        \min_{w \in \Delta} \; g_w^\top g_0 + c \|g_0\| \, \|g_w\|, \quad
        g_w = J^\top w, \quad g_0 = \tfrac1T J^\top 1

    Use :func:`cagrad_update_weights` to form the update: it also has the limits where
    :math:`g_w` vanishes.

    Args:
        gram: Gramian ``J J'``, ``(T, T)``; 16-bit and integer types become float32.
        c: radius of the ball around the mean gradient, relative to its norm, ``>= 0``;
            a scalar, may be traced.

    Returns:
        Solution with ``value`` ``(T,)``, non-negative, summing to one. ``ok`` is a scale-
        free test of the optimality conditions. Zero gradients get no weight: whatever
        is best for the other tasks cannot hurt one that is already stationary. Where
        the update does not depend on the weights (``c = 0``, zero mean gradient) they
        are uniform and ``ok``; for a non-finite ``gram`` or ``c`` uniform and not ``ok``.

    Raises:
        ValueError: if ``gram`` is not square or ``c`` is a negative number.

    The paper and its released code minimise with SLSQP from uniform weights and add
    ``1e-8`` under the roots; here the active set is exact and nothing is added.

    >>> cagrad_weights(jnp.array([[18.0, -22.0], [-22.0, 38.0]]), 0.5).value
    Array([1., 0.], dtype=float32)

    References:
        Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning,
        arXiv:2110.14048.
    """
    return _solve(gram, c)[0]


def cagrad_update_weights(gram: Array, c: float | Array) -> Solution:
    r"""Task weights ``a`` of CAGrad's update, :math:`d = J^\top a`, without rescaling.

    .. math::
        d = g_0 + c \frac{\|g_0\|}{\|g_w\|} g_w
          = \arg\max_{\|d - g_0\| \le c \|g_0\|} \; \min_t \; g_t^\top d

    with :math:`w` from :func:`cagrad_weights`; for a non-zero :math:`g_w` that is
    ``a = 1/T + c * |g_0| / |g_w| * w``. Where the gradients are Pareto-stationary,
    :math:`g_w = 0` and the ratio is not defined; ``d`` is then the limit along the
    active tasks: :math:`g_0` less its projection on their differences, a maximiser of
    the problem above that harms none of them (zero when all are active). Released codes
    return :math:`g_0` there, which is no maximiser, or zero.

    Args:
        gram: Gramian ``J J'``, ``(T, T)``; 16-bit and integer types become float32.
        c: radius relative to :math:`\|g_0\|`, ``>= 0``; a scalar, may be traced.

    Returns:
        Solution with ``value`` ``(T,)``, finite: ``1/T`` (the mean gradient) for
        ``c = 0``, a zero mean gradient, or (not ``ok``) a non-finite ``gram`` or ``c``.

    Raises:
        ValueError: if ``gram`` is not square or ``c`` is a negative number.

    >>> gram = jnp.array([[18.0, -22.0], [-22.0, 38.0]])
    >>> [round(float(a), 4) for a in cagrad_update_weights(gram, 1.0).value]
    [1.2, 0.8]

    References:
        Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning,
        arXiv:2110.14048.
    """
    solution, coefficients = _solve(gram, c)
    return solution._replace(value=1 / gram.shape[0] + coefficients)


@full_precision
def _solve(gram: Array, c: float | Array) -> tuple[Solution, Array]:
    """The dual's solution, and ``c |g_0| / |g_w| * w``."""
    gram = check_gram(gram)
    check_range("c", c, 0)
    num_tasks, eps = gram.shape[0], float(jnp.finfo(gram.dtype).eps)
    scaled = scale_gram(gram)
    c = jnp.asarray(c, gram.dtype)
    finite = scaled.finite & jnp.isfinite(c)

    # In units of the largest norm the mean gradient is sum_i mean_i u_i, |u_i| = 1.
    largest = jnp.max(scaled.norms)
    mean = scaled.norms / jnp.where(largest > 0, largest, 1) / num_tasks
    linear = scaled.cosines @ mean
    mean_norm = jnp.sqrt(jnp.maximum(mean @ linear, 0))
    radius = c * mean_norm
    regular = finite & (radius > 0)
    radius = jnp.where(regular, radius, 1)
    z, step, iterations = minimise_on_simplex(
        scaled, linear, radius, 3 * num_tasks + 10
    )

    # The conditions on λd = λg_0 + g_w, which unlike d - g_0 = g_w / λ has all limits,
    # to within a small part of the lengths it is made of.
    image = scaled.cosines @ z
    length = jnp.sqrt(jnp.maximum(z @ image, 0))
    # The solver's λ belongs to the hull of its last support, on whose edge z may lie; it
    # is needed where |g_w| is rounding.
    known = length > eps**0.25 * jnp.sum(z)
    step = jnp.where(known, length / radius, jnp.maximum(length / radius, step))
    gradient = step * linear + image
    excess = jnp.max((z @ gradient) * scaled.inverse_norms - gradient)
    rounding = 16 * eps * jnp.sum(step * mean + z)
    optimal = excess <= eps**0.5 * (step * mean_norm + length) + rounding

    weights = z * scaled.inverse_norms
    smallest = jnp.max(scaled.inverse_norms * scaled.norms)
    usable = regular & (step > 0)
    ratio = largest / jnp.where(usable, smallest, 1) / jnp.where(usable, step, 1)
    coefficients = jnp.where(usable, weights * ratio, 0)
    weights = jnp.where(regular, weights, 1 / num_tasks)
    return Solution(weights, finite & (optimal | ~regular), iterations), coefficients
