"""PBI: distance along a preferred direction of losses, and a penalty for leaving it."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from mtl_jax._types import Array, Statistics, Weighting, check_num_tasks, check_range
from mtl_jax.weighting._base import (
    losses_of,
    preference_weights,
    stateless,
    static_weights,
)


def pbi(
    num_tasks: int,
    *,
    theta: float = 5.0,
    preference: Sequence[float] | Array | None = None,
    ideal: Sequence[float] | Array | None = None,
) -> Weighting:
    r"""Penalty-based boundary intersection: minimises :math:`d_1 + \theta d_2`.

    With the unit preference :math:`\hat\pi` and the ideal point ``z``:
    :math:`d_1 = \langle L - z, \hat\pi \rangle`, :math:`p = L - z - d_1 \hat\pi`,
    :math:`d_2 = \|p\|`; hence :math:`w = \hat\pi + \theta\, p / \|p\|`. Drives the losses
    to the ratios of the preference.

    Args:
        num_tasks: number of tasks ``T``.
        theta: :math:`\theta`, weight of the penalty; 5 in the paper.
        preference: :math:`\pi`, ``T`` non-negative numbers, not all zero; ones by default.
        ideal: ``z``, ``T`` numbers below the losses; zeros by default.

    Returns:
        A weighting that needs the losses. Weights of losses below their share are
        negative where the penalty outweighs the preference: those losses are driven up.
        On the ray itself (``p`` within rounding of zero) only :math:`\hat\pi` is left;
        TorchJD adds 1e-12 under the root.

    Raises:
        ValueError: for options out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.pbi(2, theta=1.0, preference=(0.0, 1.0))
        >>> statistics = mtl_jax.Statistics(losses=jnp.array([2.0, 5.0]))
        >>> print(weighting.update(statistics, weighting.init())[0])
        [1. 1.]

    References:
        Zhang & Li, *MOEA/D: A Multiobjective Evolutionary Algorithm Based on
        Decomposition*, 2007
    """
    check_num_tasks(num_tasks)
    check_range("theta", theta, 0)
    given = preference_weights("preference", preference, num_tasks, 1.0)
    origin = static_weights("ideal", ideal, num_tasks, 0.0)

    def weights_of(statistics: Statistics) -> Array:
        losses = losses_of(statistics, num_tasks, "pbi")
        eps = float(jnp.finfo(losses.dtype).eps)
        ray = jnp.asarray(given, losses.dtype)
        length = jnp.sqrt(jnp.sum(jnp.square(ray)))
        ray = ray / jnp.where(length > 0, length, 1)
        gap = losses - jnp.asarray(origin, losses.dtype)
        scale = jnp.max(jnp.abs(gap))
        gap = gap / jnp.where(scale > 0, scale, 1)
        beside = gap - jnp.sum(gap * ray) * ray
        distance = jnp.sqrt(jnp.sum(jnp.square(beside)))
        off = distance > 8 * eps
        return ray + theta * jnp.where(off, beside / jnp.where(off, distance, 1), 0)

    return stateless(num_tasks, weights_of)
