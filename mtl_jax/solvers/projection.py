"""Euclidean projection on the probability simplex."""

from __future__ import annotations

import jax.numpy as jnp

from mtl_jax._types import Array


def project_on_simplex(vector: Array) -> Array:
    r"""Returns the point of the simplex nearest to ``vector``.

    .. math:: w = \max(v - \tau, 0), \qquad \sum_t w_t = 1

    The threshold :math:`\tau` comes from the sorted entries (Held, Wolfe & Crowder 1974).

    Args:
        vector: ``(T,)``, finite.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(project_on_simplex(jnp.array([0.75, 0.75, -3.0])))
        [0.5 0.5 0. ]
    """
    # Shifts change nothing; this one keeps the sums exact whatever the entries' size.
    shifted = jnp.maximum(vector - jnp.max(vector), -1)
    descending = -jnp.sort(-shifted)
    counts = jnp.arange(1, vector.shape[0] + 1).astype(vector.dtype)
    thresholds = (jnp.cumsum(descending) - 1) / counts
    support = jnp.sum(descending > thresholds)
    return jnp.maximum(shifted - thresholds[support - 1], 0)
