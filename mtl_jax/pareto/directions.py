"""Right-hand sides ``beta``: which independent ways lead along a Pareto set."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mtl_jax._types import Array


def check_objectives(num_objectives: int) -> None:
    """Raises ``ValueError`` unless there are two objectives or more."""
    if isinstance(num_objectives, bool) or not isinstance(num_objectives, int):
        raise ValueError(
            f"the number of objectives must be a Python integer, got {num_objectives!r}"
        )
    if num_objectives < 2:
        raise ValueError(
            f"a Pareto set has no directions with {num_objectives} objective(s): its "
            "optimum is a point and there is nothing to expand; give 2 losses or more"
        )


def independent_directions(num_objectives: int) -> Array:
    r"""Returns ``m - 1`` right-hand sides that span all directions of the Pareto set.

    The rows are Helmert's contrasts,
    :math:`\beta_k = (1, \dots, 1, -k, 0, \dots, 0) / \sqrt{k (k + 1)}`: orthonormal, and
    each sums to zero. The weights :math:`\alpha`, the null direction of
    :math:`H v = J^\top\beta`, sum to one; so no combination of the rows is a multiple of
    them, wherever on the front. (Unit vectors :math:`e_1 \dots e_{m-1}` do depend on each
    other where :math:`\alpha_m = 0`.) With two objectives the one row is
    :math:`(1, -1)/\sqrt2`, the same direction as :math:`e_1`.

    Args:
        num_objectives: ``m >= 2``.

    Returns:
        ``(m - 1, m)``, float32, or float64 in 64-bit mode.

    Raises:
        ValueError: for fewer than two objectives.

    Examples:
        >>> print(np.asarray(independent_directions(3), float).round(3))
        [[ 0.707 -0.707  0.   ]
         [ 0.408  0.408 -0.816]]
    """
    check_objectives(num_objectives)
    rows = np.zeros((num_objectives - 1, num_objectives))
    for k in range(1, num_objectives):
        rows[k - 1, :k] = 1
        rows[k - 1, k] = -k
        rows[k - 1] /= np.sqrt(k * (k + 1))
    return jnp.asarray(rows)


def both_ways(betas: ArrayLike) -> Array:
    """Returns every right-hand side and then its opposite, ``(K, m)`` to ``(2 K, m)``.

    Args:
        betas: ``(K, m)``, floating point.

    Examples:
        >>> print(both_ways(jnp.array([[1.0, -1.0]])))
        [[ 1. -1.]
         [-1.  1.]]
    """
    betas = jnp.asarray(betas)
    return jnp.concatenate([betas, -betas])
