"""Maps onto the probability simplex: the nearest point, and softmax of huge numbers."""

from __future__ import annotations

import jax
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
    shifted = jnp.clip(_below_zero(vector), -1, 0)
    descending = -jnp.sort(-shifted)
    counts = jnp.arange(1, vector.shape[0] + 1).astype(vector.dtype)
    thresholds = (jnp.cumsum(descending) - 1) / counts
    support = jnp.sum(descending > thresholds)
    return jnp.maximum(shifted - thresholds[support - 1], 0)


def safe_softmax(logits: Array) -> Array:
    """Returns the softmax, also of logits so large that their rounding errors are.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(safe_softmax(jnp.array([1e30, 0.0, -1e30])))
        [1. 0. 0.]
    """
    return jax.nn.softmax(_below_zero(logits))


def _below_zero(vector: Array) -> Array:
    """Less its largest entry."""
    # Fused with the product that made the vector, the difference is of an unrounded and a
    # rounded number: it can come out positive, and large.
    return jnp.minimum(vector - jnp.max(vector), 0)
