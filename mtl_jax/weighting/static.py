"""Weights that look at no statistics: equal, given or random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_choice,
    check_num_tasks,
)
from mtl_jax.weighting._base import stateless, static_weights


def ls(
    num_tasks: int,
    *,
    weights: Sequence[float] | Array | None = None,
    reduction: str = "sum",
) -> Weighting:
    r"""Linear scalarisation: minimises :math:`\sum_t w_t L_t` with fixed weights.

    Args:
        num_tasks: number of tasks ``T``.
        weights: ``T`` numbers; all ones by default (also known as EW, equal weighting).
        reduction: ``"sum"`` applies the weights as they are; ``"mean"`` divides them by
            ``T``. Released codes differ: nash-mtl and LibMTL apply 1 (LibMTL documents
            1/T), TorchJD offers both.

    Returns:
        A weighting that needs nothing.

    Raises:
        ValueError: for a wrong number of weights or an unknown reduction.

    Examples:
        >>> import mtl_jax
        >>> weighting = mtl_jax.weighting.ls(2, weights=(0.25, 0.75))
        >>> weights, _ = weighting.update(mtl_jax.Statistics(), weighting.init())
        >>> print(weights)
        [0.25 0.75]
    """
    check_num_tasks(num_tasks)
    check_choice("reduction", reduction, ("sum", "mean"))
    given = static_weights("weights", weights, num_tasks, 1.0)
    factor = 1.0 if reduction == "sum" else 1.0 / num_tasks

    def weights_of(statistics: Statistics) -> Array:
        return factor * jnp.asarray(given, _dtype(statistics))

    return stateless(num_tasks, weights_of)


class RlwState(NamedTuple):
    """State of :func:`rlw`."""

    key: Array
    """Random key of the next step, typed ``()``."""


def rlw(num_tasks: int, *, distribution: str = "normal", seed: int = 0) -> Weighting:
    r"""Random loss weighting: new random weights with sum 1 at every step.

    ``"normal"``: :math:`w = \mathrm{softmax}(z)`, :math:`z \sim N(0, I)`; ``"dirichlet"``:
    :math:`w \sim \mathrm{Dir}(1, \dots, 1)`, uniform on the simplex.

    Args:
        num_tasks: number of tasks ``T``.
        distribution: ``"normal"`` (the paper's default and the released codes') or
            ``"dirichlet"`` (a variant of the paper that no released code has).
        seed: seed of the key in the state.

    Returns:
        A weighting that needs nothing; its state holds the random key.

    Raises:
        ValueError: for an unknown distribution.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.rlw(3, seed=1)
        >>> statistics = mtl_jax.Statistics(losses=jnp.ones(3))
        >>> weights, _ = weighting.update(statistics, weighting.init())
        >>> print(f"{weights.sum():.3f}")
        1.000

    References:
        Lin et al., *Reasonable Effectiveness of Random Weighting*, 2021, arXiv:2111.10603
    """
    check_num_tasks(num_tasks)
    check_choice("distribution", distribution, ("normal", "dirichlet"))

    def init() -> RlwState:
        return RlwState(jax.random.key(seed))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        key, draw_key = jax.random.split(state.key)
        dtype = _dtype(statistics)
        if distribution == "normal":
            weights = jax.nn.softmax(jax.random.normal(draw_key, (num_tasks,), dtype))
        else:
            weights = jax.random.dirichlet(draw_key, jnp.ones(num_tasks, dtype))
        return weights, RlwState(key)

    return Weighting(init, update, num_tasks)


def _dtype(statistics: Statistics) -> jnp.dtype:
    """The Gramian's or the losses' dtype, at least float32."""
    given = [leaf.dtype for leaf in statistics if leaf is not None]
    return jnp.result_type(jnp.float32, *given)
