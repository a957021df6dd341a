"""Wrappers of weightings: smoothed (CR-MOGM) and renewed every k steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_count,
    check_num_tasks,
    check_range,
)
from mtl_jax.weighting.mgda import mgda


class SmoothedState(NamedTuple):
    """State of :func:`cr_mogm`."""

    smoothed: Array
    """The last weights, float ``(T,)``; NaN before the first step."""
    inner: State
    """State of the weighting inside."""


def cr_mogm(
    num_tasks: int,
    *,
    alpha: float = 0.9,
    around: Callable[[int], Weighting] | None = None,
) -> Weighting:
    r"""Correlation-reduced gradient manipulation: any weighting's weights, averaged.

    .. math:: \lambda_k = \alpha \lambda_{k-1} + (1 - \alpha) \hat\lambda_k, \qquad
              \lambda_1 = \hat\lambda_1

    The average decouples the weights from the noise of the very gradients that they
    multiply, which biases every stochastic Gramian method.

    Args:
        num_tasks: number of tasks ``T``.
        alpha: :math:`\alpha` in [0, 1]; 0 smooths nothing. The paper's theory lets it grow
            to 1 as the learning rate falls: ``optax.inject_hyperparams``.
        around: factory of the weighting inside, ``around(num_tasks)``, e.g.
            ``functools.partial(mtl_jax.weighting.cagrad, c=0.4)``; MGDA by default. In call
            strings another call: ``cr_mogm(around='cagrad(c=0.4)')``.

    Returns:
        A weighting that needs what the one inside needs. The first weights are its own
        (TorchJD averages them with equal ones).

    Raises:
        ValueError: if ``alpha`` is out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.cr_mogm(2, alpha=0.75)
        >>> state = weighting.init()
        >>> for square in (1.0, 3.0):
        ...     statistics = mtl_jax.Statistics(jnp.diag(jnp.array([square, 1.0])))
        ...     weights, state = weighting.update(statistics, state)
        >>> print(weights)
        [0.4375 0.5625]

    References:
        Zhou et al., *On the Convergence of Stochastic Multi-Objective Gradient
        Manipulation and Beyond*, NeurIPS 2022
    """
    check_num_tasks(num_tasks)
    check_range("alpha", alpha, 0, 1)
    inside = (mgda if around is None else around)(num_tasks)

    def init() -> SmoothedState:
        return SmoothedState(jnp.full(num_tasks, jnp.nan, float), inside.init())

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        fresh, inner = inside.update(statistics, state.inner)
        last = state.smoothed.astype(fresh.dtype)
        last = jnp.where(jnp.isnan(last), fresh, last)
        weights = alpha * last + (1 - alpha) * fresh
        return weights, SmoothedState(weights.astype(state.smoothed.dtype), inner)

    return Weighting(init, update, num_tasks)


class RenewedState(NamedTuple):
    """State of :func:`every_k`."""

    kept: Array
    """The weights in force, float ``(T,)``."""
    age: Array
    """Steps since they were computed, int32 ``()``; 0: they are due."""
    inner: State
    """State of the weighting inside."""


def every_k(weighting: Weighting, k: int) -> Weighting:
    """Renews the weights in every ``k``-th step only and keeps them in between.

    Saves the ``T x T`` solve, and nothing else: to save the backward passes, too, use
    ``every_k=`` of :func:`mtl_jax.value_and_combined_grad`.

    Args:
        weighting: any.
        k: at least 1; the first step computes weights.

    Returns:
        A weighting that needs what the one inside needs. Under ``vmap`` nothing is skipped.
        The one inside sees every ``k``-th step only: DWA, FAMO and others that learn from
        step to step learn ``k`` times more slowly, and FAMO's ``revisited_losses`` would
        have to be those of the batch ``k`` steps before.

    Raises:
        ValueError: unless ``k`` is a Python integer >= 1.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> nash = mtl_jax.weighting.every_k(mtl_jax.weighting.nash_mtl(2), k=2)
        >>> state = nash.init()
        >>> for square in (1.0, 4.0, 16.0):
        ...     weights, state = nash.update(mtl_jax.Statistics(square * jnp.eye(2)), state)
        ...     print(weights)
        [1. 1.]
        [1. 1.]
        [0.25 0.25]

    References:
        Navon et al., *Multi-Task Learning as a Bargaining Game*, 2022, arXiv:2202.01017
    """
    check_count("k", k, 1)
    num_tasks = weighting.num_tasks

    def init() -> RenewedState:
        kept = jnp.ones(num_tasks, float)
        return RenewedState(kept, jnp.zeros([], jnp.int32), weighting.init())

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        dtype = jax.eval_shape(weighting.update, statistics, state.inner)[0].dtype

        def renew(state: RenewedState) -> tuple[Array, RenewedState]:
            weights, inner = weighting.update(statistics, state.inner)
            kept = weights.astype(state.kept.dtype)
            return weights, RenewedState(kept, state.age, inner)

        def keep(state: RenewedState) -> tuple[Array, RenewedState]:
            return state.kept.astype(dtype), state

        weights, new = lax.cond(state.age == 0, renew, keep, state)
        return weights, new._replace(age=(state.age + 1) % k)

    return Weighting(init, update, num_tasks)
