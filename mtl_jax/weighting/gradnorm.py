"""GradNorm: learned weights that equalise training rates."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_choice,
    check_num_tasks,
    check_range,
)
from mtl_jax.weighting._base import descend, gram_of, losses_of


class GradnormState(NamedTuple):
    """State of :func:`gradnorm`."""

    logits: Array
    """The trained parameters ``(T,)``: the weights, or their logits with softmax."""
    initial_losses: Array
    """Losses of the first step, ``(T,)``; NaN before it."""
    opt_state: State
    """Adam's state for ``logits``."""


def gradnorm(
    num_tasks: int,
    *,
    alpha: float = 1.5,
    learning_rate: float = 0.025,
    parametrization: str = "direct",
) -> Weighting:
    r"""GradNorm: pulls all weighted gradient norms towards a common, rate-adjusted one.

    With :math:`G_t = w_t \|g_t\|`, their mean :math:`\bar G` and the relative inverse
    training rates :math:`r_t = (L_t / L_t^0) / \mathrm{mean}_s(L_s / L_s^0)`, the weights
    take one Adam step per training step on
    :math:`\sum_t | G_t - \bar G r_t^\alpha |`, the target held constant, and are
    renormalised to the sum ``T``.

    Args:
        num_tasks: number of tasks ``T``.
        alpha: :math:`\alpha`, strength of the pull towards equal training rates.
        learning_rate: Adam's learning rate for the weights.
        parametrization: ``"direct"`` trains the weights and renormalises them (the paper's
            Algorithm 1; here they are also kept above 1e-3, because the paper's may turn
            negative); ``"softmax"`` trains logits with ``w = T softmax`` (LibMTL).

    Returns:
        A weighting that needs the losses and the Gramian (only its diagonal). The norms
        are those of all shared parameters given to the aggregator, as in LibMTL; the
        paper takes the last shared layer only. :math:`L^0` are the first step's losses,
        as in the paper (LibMTL: the means of the first epoch).

    Raises:
        ValueError: for hyper-parameters out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.gradnorm(2)
        >>> statistics = mtl_jax.Statistics(jnp.diag(jnp.array([4.0, 1.0])), jnp.ones(2))
        >>> weights, _ = weighting.update(statistics, weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        1.000 1.000

    References:
        Chen et al., *GradNorm*, 2018, arXiv:1711.02257
    """
    check_num_tasks(num_tasks)
    check_range("alpha", alpha)
    check_range("learning_rate", learning_rate, 0)
    check_choice("parametrization", parametrization, ("direct", "softmax"))
    optimizer = optax.adam(learning_rate)
    direct = parametrization == "direct"

    def weights_of(logits: Array) -> Array:
        return logits if direct else num_tasks * jax.nn.softmax(logits)

    def init() -> GradnormState:
        logits = jnp.full(num_tasks, 1.0 if direct else 0.0, float)
        unknown = jnp.full(num_tasks, jnp.nan, float)
        return GradnormState(logits, unknown, optimizer.init(logits))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        gram = gram_of(statistics, num_tasks, "gradnorm")
        losses = losses_of(statistics, num_tasks, "gradnorm")
        dtype = state.logits.dtype
        norms = jnp.sqrt(jnp.diagonal(gram)).astype(dtype)
        current = losses.astype(dtype)
        first = jnp.isnan(state.initial_losses)
        initial = jnp.where(first, current, state.initial_losses)
        progress = current / jnp.where(initial == 0, 1, initial)
        mean_progress = progress.mean()
        rates = progress / jnp.where(mean_progress == 0, 1, mean_progress)
        # The exponent is only defined for positive rates; losses below zero count as 0.
        rates = jnp.where(rates > 0, rates, 0) ** alpha
        weights = weights_of(state.logits)
        target = (weights * norms).mean() * rates

        def distance(logits: Array) -> Array:
            return jnp.abs(weights_of(logits) * norms - target).sum()

        gradient = jax.grad(distance)(state.logits)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
        logits, opt_state = descend(optimizer, gradient, state.logits, state.opt_state)
        if direct:
            logits = jnp.maximum(logits, 1e-3)
            logits = num_tasks * logits / logits.sum()
        return weights.astype(gram.dtype), GradnormState(logits, initial, opt_state)

    return Weighting(init, update, num_tasks)
