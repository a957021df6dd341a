"""Geometric loss strategy: the geometric mean of the losses."""

from __future__ import annotations

import jax.numpy as jnp

from mtl_jax._types import Solution, Statistics, Weighting, check_num_tasks
from mtl_jax.weighting._base import from_solver, losses_of, positive_or


def gls(num_tasks: int) -> Weighting:
    r"""Minimises the geometric mean of the losses, :math:`(\prod_t L_t)^{1/T}`.

    The weight of task ``t`` is :math:`(\prod_s L_s)^{1/T} / (T L_t)`: the direction of
    :func:`mtl_jax.si`, with a length that follows the losses. While any loss is not
    positive the weights are ``1/T`` and the state counts a fallback.

    Args:
        num_tasks: number of tasks ``T``.

    Returns:
        A weighting that needs the losses; the mean is computed through logarithms.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.gls(2)
        >>> statistics = mtl_jax.Statistics(losses=jnp.array([1.0, 4.0]))
        >>> print(weighting.update(statistics, weighting.init())[0])
        [1.   0.25]

    References:
        Chennupati et al., *MultiNet++*, 2019, arXiv:1904.08492
    """
    check_num_tasks(num_tasks)

    def solve(statistics: Statistics) -> Solution:
        losses = losses_of(statistics, num_tasks, "gls")
        safe = jnp.where(losses > 0, losses, 1)
        logs = jnp.log(safe)
        # exp(mean - log) rather than a product: neither may leave the range alone.
        weights = jnp.exp(logs.mean() - logs) / num_tasks
        return positive_or(weights, losses, jnp.full_like(losses, 1 / num_tasks))

    return from_solver(num_tasks, solve)
