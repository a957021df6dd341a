"""CAGrad's dual problem on the simplex."""

from __future__ import annotations

import jax.numpy as jnp

from mtl_jax._types import Array, Solution
from mtl_jax.solvers.active_set import check_gram, minimise_on_simplex, scale_gram


def cagrad_weights(gram: Array, c: float | Array) -> Solution:
    gram = check_gram(gram)
    num_tasks = gram.shape[0]
    eps = float(jnp.finfo(gram.dtype).eps)
    scaled = scale_gram(gram)
    c = jnp.asarray(c, gram.dtype)
    # mean gradient = max(n) * sum_i mean_i u_i, u_i the unit gradients
    largest = jnp.max(scaled.norms)
    mean = scaled.norms / jnp.where(largest > 0, largest, 1) / num_tasks
    linear = scaled.cosines @ mean
    mean_norm = jnp.sqrt(jnp.maximum(mean @ linear, 0))
    radius = c * mean_norm
    trivial = ~(radius > 0)
    radius = jnp.where(trivial, 1, radius)
    z, iterations = minimise_on_simplex(scaled, linear, radius, 3 * num_tasks + 10)

    total = scaled.inverse_norms @ z
    regular = scaled.finite & ~trivial & (total > 0)
    z = z / jnp.where(total > 0, total, 1)
    weights = jnp.where(regular, z * scaled.inverse_norms, 1 / num_tasks)
    image = scaled.cosines @ z
    square = jnp.maximum(z @ image, 0)
    step = jnp.sqrt(square) / radius
    gradient = step * linear + image
    excess = jnp.max(
        (z @ gradient) * scaled.inverse_norms - gradient,
        where=scaled.nonzero,
        initial=0,
    )
    scale = jnp.sqrt(square) + step * mean_norm
    optimal = excess <= eps**0.5 * scale + 16 * eps * jnp.sum(z)
    return Solution(weights, scaled.finite & (optimal | trivial), iterations)
