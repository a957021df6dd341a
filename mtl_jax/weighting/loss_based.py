"""Weights computed from the losses alone: scale-invariant, uncertainty, DWA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax._types import (
    Array,
    Solution,
    State,
    Statistics,
    Weighting,
    check_choice,
    check_count,
    check_num_tasks,
    check_range,
)
from mtl_jax.weighting._base import (
    bounded_logs,
    descend,
    from_solver,
    losses_of,
    positive_or,
    static_weights,
)


def si(num_tasks: int, *, weights: Sequence[float] | Array | None = None) -> Weighting:
    r"""Scale-invariant baseline: minimises :math:`\sum_t w_t \log L_t`.

    The weight of task ``t`` is :math:`w_t / L_t`, so multiplying a loss by a constant
    changes nothing. The logarithm needs positive losses: while any loss is not positive,
    the plain ``w`` is used and the state counts a fallback.

    Args:
        num_tasks: number of tasks ``T``.
        weights: ``T`` numbers, all ones by default.

    Returns:
        A weighting that needs the losses.

    Raises:
        ValueError: for a wrong number of weights.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.si(2)
        >>> statistics = mtl_jax.Statistics(losses=jnp.array([1.0, 4.0]))
        >>> weights, _ = weighting.update(statistics, weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        1.000 0.250

    References:
        Baseline of Navon et al., *Multi-Task Learning as a Bargaining Game*, 2022,
        arXiv:2202.01017
    """
    check_num_tasks(num_tasks)
    given = static_weights("weights", weights, num_tasks, 1.0)

    def solve(statistics: Statistics) -> Solution:
        losses = losses_of(statistics, num_tasks, "si")
        plain = jnp.asarray(given, losses.dtype)
        positive = losses > 0
        scaled = plain / jnp.where(positive, losses, 1)
        return positive_or(scaled, losses, plain)

    return from_solver(num_tasks, solve)


class UwState(NamedTuple):
    """State of :func:`uw`."""

    log_variances: Array
    """:math:`s_t = \\log \\sigma_t^2`, float ``(T,)``."""
    opt_state: State
    """Adam's state for ``log_variances``."""


def uw(
    num_tasks: int, *, learning_rate: float = 0.025, initial_log_variance: float = 0.0
) -> Weighting:
    r"""Uncertainty weighting: learns one homoscedastic variance per task.

    Minimises :math:`\sum_t \tfrac12 (e^{-s_t} L_t + s_t)` over the network and over
    :math:`s_t = \log\sigma_t^2`, so the weight of task ``t`` is
    :math:`\tfrac12 e^{-s_t}`. The ``s_t`` live in this state and follow their own Adam.

    Args:
        num_tasks: number of tasks ``T``.
        learning_rate: Adam's learning rate for ``s``, 0.025 as in nash-mtl's code (LibMTL
            trains ``s`` with the network's optimiser and its weight decay).
        initial_log_variance: initial ``s``, 0 as in nash-mtl (LibMTL: -0.5).

    Returns:
        A weighting that needs the losses. A loss that stays at zero gets a weight of
        3.5e12 in float32 at most; the released codes' grow until they overflow.

    Raises:
        ValueError: for a negative learning rate.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.uw(2, learning_rate=0.1)
        >>> statistics = mtl_jax.Statistics(losses=jnp.array([1.0, 4.0]))
        >>> weights, _ = weighting.update(statistics, weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        0.500 0.500

    References:
        Kendall et al., *Multi-Task Learning Using Uncertainty to Weigh Losses*, 2018,
        arXiv:1705.07115
    """
    check_num_tasks(num_tasks)
    check_range("learning_rate", learning_rate, 0)
    check_range("initial_log_variance", initial_log_variance)
    optimizer = optax.adam(learning_rate)

    def init() -> UwState:
        log_variances = jnp.full(num_tasks, initial_log_variance, float)
        return UwState(log_variances, optimizer.init(log_variances))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        losses = losses_of(statistics, num_tasks, "uw")
        precisions = jnp.exp(-state.log_variances)
        gradient = 0.5 * (1 - precisions * losses.astype(precisions.dtype))
        weights = (0.5 * precisions).astype(losses.dtype)
        logs, inner = descend(optimizer, gradient, state.log_variances, state.opt_state)
        return weights, UwState(bounded_logs(logs), inner)

    return Weighting(init, update, num_tasks)


class DwaState(NamedTuple):
    """State of :func:`dwa`."""

    history: Array
    """The last ``2 * window`` losses, newest last, float ``(2 * window, T)``."""
    count: Array
    """Losses seen so far, int32 ``()``."""
    dwa_weights: Array
    """Weights in force, float ``(T,)``."""


def dwa(
    num_tasks: int,
    *,
    temperature: float = 2.0,
    window: int = 25,
    average: str = "block",
    reduction: str = "sum",
) -> Weighting:
    r"""Dynamic weight average: favours the tasks whose losses fall slowest.

    .. math:: w = T \, \mathrm{softmax}(r / \tau), \qquad
              r_t = \bar L_t(k-1) / \bar L_t(k-2)

    with the average losses of two consecutive windows of steps. Until both are complete
    all weights are 1.

    Args:
        num_tasks: number of tasks ``T``.
        temperature: :math:`\tau`; large values give equal weights.
        window: steps per window. The paper averages over epochs: give the number of
            steps in an epoch. nash-mtl's code takes 25.
        average: ``"block"`` recomputes the weights once per window, as the paper;
            ``"sliding"`` at every step, as nash-mtl's code (whose buffer is filled with
            ones at first, which distorts its first 50 steps; ours waits instead).
        reduction: ``"sum"``: weights add up to ``T`` as in the paper; ``"mean"``: to 1,
            as in nash-mtl's code.

    Returns:
        A weighting that needs the losses.

    Raises:
        ValueError: for a temperature or window out of range or unknown choices.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.dwa(2, window=1)
        >>> state = weighting.init()
        >>> for losses in ([4.0, 4.0], [3.0, 2.0], [3.0, 1.0]):
        ...     statistics = mtl_jax.Statistics(losses=jnp.array(losses))
        ...     weights, state = weighting.update(statistics, state)
        >>> print(*(f"{w:.3f}" for w in weights))
        1.062 0.938

    References:
        Liu et al., *End-to-End Multi-Task Learning with Attention*, 2019,
        arXiv:1803.10704
    """
    check_num_tasks(num_tasks)
    check_range("temperature", temperature, 0, open_low=True)
    check_count("window", window, 1)
    check_choice("average", average, ("block", "sliding"))
    check_choice("reduction", reduction, ("sum", "mean"))

    def init() -> DwaState:
        history = jnp.ones((2 * window, num_tasks), float)
        return DwaState(history, jnp.zeros([], jnp.int32), jnp.ones(num_tasks, float))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        losses = losses_of(statistics, num_tasks, "dwa")
        history, count = state.history, state.count
        older, newer = history[:window].mean(axis=0), history[window:].mean(axis=0)
        positive = older > 0
        ratios = jnp.where(positive, newer / jnp.where(positive, older, 1), 1)
        fresh = num_tasks * jax.nn.softmax(ratios / temperature)
        due = (count >= 2 * window) & ((average == "sliding") | (count % window == 0))
        weights = jnp.where(due & jnp.isfinite(fresh).all(), fresh, state.dwa_weights)
        latest = losses.astype(history.dtype)[None]
        history = jnp.concatenate([history[1:], latest])
        factor = 1.0 if reduction == "sum" else 1.0 / num_tasks
        out = (factor * weights).astype(losses.dtype)
        return out, DwaState(history, count + 1, weights)

    return Weighting(init, update, num_tasks)
