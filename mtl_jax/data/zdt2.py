"""The variant of ZDT2 on which continuous Pareto exploration is exact."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from mtl_jax._types import Array


def zdt2_losses(x: Array) -> Array:
    r"""Two losses of three variables with a concave front, ``f₂ = 1 - f₁²``.

    With :math:`s = x_2^2 + x_3^2`,

    .. math::

        u &= \tfrac12 (1 + \sin(x_1 + s)), \quad q = \tfrac12 (1 + \cos s), \\
        g &= 1 + 9 q, \qquad f_1 = u, \quad f_2 = g \left(1 - (u / g)^2\right).

    The Pareto set is where ``cos s = -1``; see :func:`zdt2_pareto_point`. A weighted sum
    finds only the ends of the concave front. ``H = Σ αᵢ ∇²fᵢ`` there has rank two and,
    between the ends, one eigenvalue of each sign, so that CG is unsafe.

    Args:
        x: (3,), float32 or float64; ``jax.vmap`` for several.

    Returns:
        losses (2,), of x's type.

    Raises:
        ValueError: if ``x`` is not of shape (3,).

    References:
        Ma, Du and Matusik 2020, arXiv:2006.16434, Figures 2 and 3. ``q`` stands for the
        equal variables 2 and 3 of ZDT2 (Zitzler, Deb and Thiele 2000).

    >>> losses = zdt2_losses(zdt2_pareto_point(-jnp.pi, 0.3))
    >>> print(losses.round(4))
    [0.5  0.75]
    """
    if jnp.shape(x) != (3,):
        raise ValueError(
            f"x must have shape (3,), got {jnp.shape(x)}: use jax.vmap for several points"
        )
    square = x[1] ** 2 + x[2] ** 2
    u = (1 + jnp.sin(x[0] + square)) / 2
    g = 1 + 9 * (1 + jnp.cos(square)) / 2
    return jnp.stack([u, g * (1 - (u / g) ** 2)])


def zdt2_pareto_point(x1: float | Array, theta: float | Array) -> Array:
    r"""Point :math:`(x_1, \sqrt\pi \cos\theta, \sqrt\pi \sin\theta)` of the Pareto set.

    One period of the set is the cylinder piece with ``x1`` in (-3π/2, -π/2), on which
    ``f₁ = (1 + sin(x1 + π))/2`` rises from 0 to 1; other ``x1``, and other circles
    ``s = π mod 2π``, are copies. At a given ``x1`` all ``theta`` have the same losses.

    Args:
        x1: first coordinate, a scalar.
        theta: angle, a scalar.

    Returns:
        (3,), of the scalars' type.
    """
    dtype = jnp.result_type(x1, theta, 1.0)
    x1, theta = jnp.asarray(x1, dtype), jnp.asarray(theta, dtype)
    radius = math.sqrt(math.pi)
    return jnp.stack([x1, radius * jnp.cos(theta), radius * jnp.sin(theta)])


def zdt2_front(num: int = 101) -> np.ndarray:
    """Points of the exact front, evenly spaced in ``f₁``: float64 (num, 2).

    >>> print(zdt2_front(3))
    [[0.   1.  ]
     [0.5  0.75]
     [1.   0.  ]]
    """
    first = np.linspace(0, 1, num)
    return np.stack([first, 1 - first**2], axis=1)


def zdt2_sample(seed: int) -> np.ndarray:
    """Random point of the Pareto set, as the figures of the paper draw it.

    ``x1 ~ U(-π/2, π/2) - π`` first, then ``theta ~ U(-π, π)``, by NumPy's legacy
    generator ``RandomState(seed)``: the same numbers as after ``numpy.random.seed``.

    Args:
        seed: 42 for the start of Figure 2, 0 to 9 for those of Figure 3.

    Returns:
        float64 (3,).

    >>> print(zdt2_sample(42).round(5))
    [-3.53574 -1.68815  0.54015]
    """
    rng = np.random.RandomState(seed)
    x1 = rng.uniform(-np.pi / 2, np.pi / 2) - np.pi
    theta = rng.uniform(-np.pi, np.pi)
    radius = np.sqrt(np.pi)
    return np.array([x1, radius * np.cos(theta), radius * np.sin(theta)])
