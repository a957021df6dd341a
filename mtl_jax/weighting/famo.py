"""FAMO: weights that even out the losses' rates of decrease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
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
from mtl_jax.weighting._base import (
    descend,
    losses_of,
    revisited_losses_of,
    static_weights,
    through_softmax,
)


class FamoState(NamedTuple):
    """State of :func:`famo`."""

    logits: Array
    """:math:`\\xi`, float ``(T,)``."""
    last_losses: Array
    """Losses of the previous step, ``(T,)``; NaN before the first."""
    opt_state: State
    """State of the optimiser of the logits."""


def famo(
    num_tasks: int,
    *,
    learning_rate: float = 0.025,
    weight_decay: float = 1e-3,
    lower_bounds: Sequence[float] | Array | None = None,
) -> Weighting:
    r"""Fast adaptive multi-task optimisation: equal relative progress, no task gradients.

    With :math:`z = \mathrm{softmax}(\xi)` and :math:`D_t = L_t - b_t` the weights are
    :math:`w_t \propto z_t / D_t`, adding up to 1. Then
    :math:`\delta_t = \log D_t - \log D_t^{+}` says how fast each loss fell, and ``xi``
    follows one Adam step (with L2 decay) on :math:`\sum_t \delta_t z_t`.

    Args:
        num_tasks: number of tasks ``T``.
        learning_rate: Adam's learning rate for ``xi``.
        weight_decay: L2 decay of ``xi``.
        lower_bounds: ``b``, ``T`` numbers below the losses; zeros by default.

    Returns:
        A weighting that needs the losses. :math:`D^{+}` are the losses after the step on
        the *same* batch: pass them at the next step as ``revisited_losses=``, one forward
        pass of the previous batch, as the released code does right after the step.
        Without them the new batch's losses stand in, which costs nothing and adds the
        batches' difference as noise. Where a loss is not above its bound (or not finite),
        ``xi`` stays and the weights are ``z``.

    Raises:
        ValueError: for options out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.famo(2)
        >>> statistics = mtl_jax.Statistics(losses=jnp.array([1.0, 4.0]))
        >>> print(weighting.update(statistics, weighting.init())[0])
        [0.8 0.2]

    References:
        Liu et al., *FAMO: Fast Adaptive Multitask Optimization*, 2023, arXiv:2306.03792
    """
    check_num_tasks(num_tasks)
    check_range("learning_rate", learning_rate, 0)
    check_range("weight_decay", weight_decay, 0)
    bounds = static_weights("lower_bounds", lower_bounds, num_tasks, 0.0)
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.adam(learning_rate)
    )

    def init() -> FamoState:
        logits = jnp.zeros(num_tasks, float)
        unknown = jnp.full(num_tasks, jnp.nan, float)
        return FamoState(logits, unknown, optimizer.init(logits))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        losses = losses_of(statistics, num_tasks, "famo")
        revisited = revisited_losses_of(statistics, num_tasks, "famo")
        dtype = state.logits.dtype
        low = jnp.asarray(bounds, dtype)
        before, after = state.last_losses - low, revisited.astype(dtype) - low
        usable = ((before > 0) & (after > 0)).all()  # false on NaN, too
        usable = usable & jnp.isfinite(before + after).all()
        rates = jnp.log(jnp.where(usable, before, 1) / jnp.where(usable, after, 1))
        shares = jax.nn.softmax(state.logits)
        gradient = through_softmax(rates, shares)
        trained = descend(optimizer, gradient, state.logits, state.opt_state)
        logits, opt_state = jax.tree.map(
            lambda new, old: jnp.where(usable, new, old),
            trained,
            (state.logits, state.opt_state),
        )
        shares, gaps = jax.nn.softmax(logits), losses.astype(dtype) - low
        positive = (gaps > 0).all() & jnp.isfinite(gaps).all()
        parts = shares / jnp.where(positive, gaps, 1)
        weights = (parts / parts.sum()).astype(losses.dtype)
        return weights, FamoState(logits, losses.astype(dtype), opt_state)

    return Weighting(init, update, num_tasks)
