"""STCH: a smooth Chebyshev scalarisation of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_choice,
    check_num_tasks,
    check_range,
)
from mtl_jax.solvers.projection import safe_softmax
from mtl_jax.weighting._base import losses_of, preference_weights


class StchState(NamedTuple):
    """State of :func:`stch`."""

    nadir: Array
    """Mean losses of the last warm-up steps, the reference, float ``(T,)``."""
    count: Array
    """Steps taken, int32 ``()``."""


def stch(
    num_tasks: int,
    *,
    mu: float = 1.0,
    form: str = "log",
    warmup: int = 100,
    window: int = 25,
    preference: Sequence[float] | Array | None = None,
) -> Weighting:
    r"""Smooth Chebyshev scalarisation: a soft maximum of the losses.

    ``"log"``: minimises :math:`T \mu \log \sum_t \exp(\log(L_t / R_t) / \mu)`, i.e.
    :math:`w_t = T\, \mathrm{softmax}(\log(L / R) / \mu)_t / L_t`, with the nadir ``R``
    measured at the end of a warm-up on :math:`\sum_t \log L_t`; ``"plain"``: minimises
    :math:`\mu \log \sum_t \exp(\pi_t L_t / \mu)`, no warm-up.

    Args:
        num_tasks: number of tasks ``T``.
        mu: :math:`\mu`, smoothness; small values follow the largest loss alone.
        form: ``"log"`` (the authors' deep-learning experiments and LibMTL) or ``"plain"``
            (the paper's formula with the ideal point zero, and TorchJD).
        warmup: steps before the weights turn on; LibMTL: four epochs and the next.
        window: how many of these last steps the nadir is the mean of; LibMTL: one epoch.
        preference: :math:`\pi` of ``"plain"``, ``T`` non-negative numbers, not all zero;
            ``1/T`` each by default.

    Returns:
        A weighting that needs the losses. ``"log"`` needs positive ones: while any is not
        positive, all weights are 1.

    Raises:
        ValueError: for options out of range, or ``preference`` with ``"log"``.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.stch(2, form="plain", mu=0.01)
        >>> statistics = mtl_jax.Statistics(losses=jnp.array([1.0, 4.0]))
        >>> print(weighting.update(statistics, weighting.init())[0])
        [0.  0.5]

    References:
        Lin et al., *Smooth Tchebycheff Scalarization for Multi-Objective Optimization*,
        2024, arXiv:2402.19078
    """
    check_num_tasks(num_tasks)
    check_choice("form", form, ("log", "plain"))
    check_range("mu", mu, 0, open_low=True)
    check_range("window", window, 1)
    check_range("warmup", warmup, window if isinstance(window, int) else 1)
    if form == "log" and preference is not None:
        raise ValueError("stch takes a preference with form='plain' only")
    given = preference_weights("preference", preference, num_tasks, 1.0 / num_tasks)

    def init() -> StchState:
        return StchState(jnp.zeros(num_tasks, float), jnp.zeros([], jnp.int32))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        losses = losses_of(statistics, num_tasks, "stch")
        if form == "plain":
            pi = jnp.asarray(given, losses.dtype)
            return pi * safe_softmax(pi * losses / mu), state
        count, current = state.count, losses.astype(state.nadir.dtype)
        measuring = (count >= warmup - window) & (count < warmup)
        nadir = state.nadir + jnp.where(measuring, current / window, 0)
        positive = (losses > 0).all() & ((count < warmup) | (nadir > 0).all())
        safe = jnp.where(positive, current, 1)
        ratios = jnp.log(safe / jnp.where(nadir > 0, nadir, 1))
        shares = num_tasks * safe_softmax(ratios / mu)
        weights = jnp.where(count < warmup, 1, shares) / safe
        weights = jnp.where(positive, weights, 1)
        # Stops counting once the warm-up is over.
        count = jnp.minimum(count + 1, warmup).astype(state.count.dtype)
        return weights.astype(losses.dtype), StchState(nadir, count)

    return Weighting(init, update, num_tasks)
