"""IMTL-L and IMTL: learned loss scales, alone and with IMTL-G."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import optax

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_num_tasks,
    check_range,
)
from mtl_jax.solvers.scaling import full_precision
from mtl_jax.weighting._base import bounded_logs, descend, gram_of, losses_of
from mtl_jax.weighting.imtl import equal_cosines


class ImtlLState(NamedTuple):
    """State of :func:`imtl_l`."""

    log_scales: Array
    """:math:`s_t`, float ``(T,)``."""
    opt_state: State
    """Adam's state for ``log_scales``."""


class ImtlState(NamedTuple):
    """State of :func:`imtl`."""

    scales: ImtlLState
    fallbacks: Array
    """How often IMTL-G had no weights with sum 1, int32 ``()``."""


def imtl_l(num_tasks: int, *, learning_rate: float = 0.025) -> Weighting:
    r"""Impartial multi-task learning (loss part): learned scales make the losses equal.

    Minimises :math:`\sum_t (e^{s_t} L_t - s_t)` over the network and over ``s``, so the
    weight of task ``t`` is :math:`e^{s_t}`, which settles where every weighted loss is 1.

    Args:
        num_tasks: number of tasks ``T``.
        learning_rate: Adam's learning rate for ``s`` (LibMTL trains ``s``, from 0 too,
            with the network's optimiser).

    Returns:
        A weighting that needs the losses. Losses that stay zero or negative drive their
        scale up: here to 7e12 in float32 at most, in the paper until it overflows.

    Raises:
        ValueError: for a negative learning rate.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.imtl_l(2, learning_rate=0.5)
        >>> statistics = mtl_jax.Statistics(losses=jnp.array([1.0, 4.0]))
        >>> weights, state = weighting.update(statistics, weighting.init())
        >>> weights, state = weighting.update(statistics, state)
        >>> print(*(f"{w:.3f}" for w in weights))
        1.000 0.607

    References:
        Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021
    """
    check_num_tasks(num_tasks)
    check_range("learning_rate", learning_rate, 0)
    optimizer = optax.adam(learning_rate)

    def init() -> ImtlLState:
        log_scales = jnp.zeros(num_tasks, float)
        return ImtlLState(log_scales, optimizer.init(log_scales))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        losses = losses_of(statistics, num_tasks, "imtl_l")
        scales = jnp.exp(state.log_scales)
        gradient = scales * losses.astype(scales.dtype) - 1
        logs, inner = descend(optimizer, gradient, state.log_scales, state.opt_state)
        return scales.astype(losses.dtype), ImtlLState(bounded_logs(logs), inner)

    return Weighting(init, update, num_tasks)


def imtl(num_tasks: int, *, learning_rate: float = 0.025) -> Weighting:
    r"""Impartial multi-task learning, both parts: IMTL-G on the losses scaled by IMTL-L.

    With the scales :math:`e^{s_t}` of :func:`mtl_jax.imtl_l` and the weights ``a`` of
    :func:`mtl_jax.imtl_g` for the gradients :math:`e^{s_t} g_t`, the weights are
    :math:`a_t e^{s_t}`. The direction is IMTL-G's whatever the scales; they set its length
    and the gradients of task-specific parameters (``head_weights="weighted"``).

    Args:
        num_tasks: number of tasks ``T``.
        learning_rate: Adam's learning rate for ``s``.

    Returns:
        A weighting that needs the losses and the Gramian.

    Raises:
        ValueError: for a negative learning rate.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.imtl(2)
        >>> statistics = mtl_jax.Statistics(jnp.eye(2), jnp.array([1.0, 4.0]))
        >>> print(weighting.update(statistics, weighting.init())[0])
        [0.5 0.5]

    References:
        Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021
    """
    loss_part = imtl_l(num_tasks, learning_rate=learning_rate)
    solve = full_precision(equal_cosines)

    def init() -> ImtlState:
        return ImtlState(loss_part.init(), jnp.zeros([], jnp.int32))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        gram = gram_of(statistics, num_tasks, "imtl")
        losses = losses_of(statistics, num_tasks, "imtl")
        scales, inner = loss_part.update(Statistics(losses=losses), state.scales)
        scales = scales.astype(gram.dtype)
        solution = solve(gram * scales[:, None] * scales[None, :])
        failed = (~solution.ok).astype(jnp.int32)
        return solution.value * scales, ImtlState(inner, state.fallbacks + failed)

    return Weighting(init, update, num_tasks)
