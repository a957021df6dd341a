"""MoDo: weights that follow stochastic multi-gradients from independent batches."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_num_tasks,
    check_range,
)
from mtl_jax.solvers.projection import project_on_simplex
from mtl_jax.solvers.scaling import full_precision
from mtl_jax.weighting._base import cross_gram_of


class SimplexState(NamedTuple):
    """State of :func:`modo` and :func:`sdmgrad`."""

    point: Array
    """The point of the simplex that follows the problem, float ``(T,)``."""


def simplex_center(num_tasks: int) -> SimplexState:
    """The state before the first step."""
    return SimplexState(jnp.full(num_tasks, 1 / num_tasks, float))


def modo(num_tasks: int, *, gamma: float = 1e-3, rho: float = 0.1) -> Weighting:
    r"""Multi-objective gradient with double sampling: MGDA's weights, followed slowly.

    .. math:: \lambda \leftarrow \Pi_\Delta\big(\lambda
              - \gamma (A B^\top \lambda + \rho \lambda)\big)

    with the task gradients ``A``, ``B`` of two independent batches, whose product is an
    unbiased estimate of the Gramian; then :math:`\Delta = \sum_t \lambda_t g_t` on a third.

    Args:
        num_tasks: number of tasks ``T``.
        gamma: :math:`\gamma`, step size of the weights (LibMTL: 1e-3).
        rho: :math:`\rho`, pull towards equal weights (LibMTL: 0.1).

    Returns:
        A weighting for ``update(..., independent=(A, B))``, two stacks ``(T, *p)``;
        without them the batch at hand serves (its Gramian, biased by the batch's noise).
        The weights add up to 1. Heads get the third batch's gradients (LibMTL: the mean
        over the three).

    Raises:
        ValueError: for options out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.modo(2, gamma=0.25, rho=0.0)
        >>> statistics = mtl_jax.Statistics(jnp.diag(jnp.array([1.0, 3.0])))
        >>> print(weighting.update(statistics, weighting.init())[0])
        [0.625 0.375]

    References:
        Chen et al., *Three-Way Trade-Off in Multi-Objective Learning*, 2023,
        arXiv:2305.20057
    """
    check_num_tasks(num_tasks)
    check_range("gamma", gamma, 0)
    check_range("rho", rho, 0)

    @full_precision
    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        product = cross_gram_of(statistics, num_tasks, "modo")
        point = state.point.astype(product.dtype)
        point = project_on_simplex(point - gamma * (product @ point + rho * point))
        return point, SimplexState(point.astype(state.point.dtype))

    return Weighting(lambda: simplex_center(num_tasks), update, num_tasks)
