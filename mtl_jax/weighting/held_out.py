"""Auto-Lambda and MOML: weights learned from held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from mtl_jax.solvers import min_norm_point
from mtl_jax.solvers.scaling import full_precision
from mtl_jax.weighting._base import (
    cross_gram_of,
    descend,
    preference_weights,
    through_softmax,
)


class HeldOutState(NamedTuple):
    """State of :func:`auto_lambda` and :func:`moml`."""

    logits: Array
    """The weights are their softmax, float ``(T,)``."""
    opt_state: State
    """Adam's state for ``logits``."""


def auto_lambda(
    num_tasks: int,
    *,
    learning_rate: float = 1e-3,
    primary: Sequence[float] | Array | None = None,
) -> Weighting:
    r"""Auto-Lambda: weights whose look-ahead step helps the held-out losses most.

    A step :math:`\theta' = \theta - \eta \sum_t \lambda_t g_t` changes the held-out
    losses ``F`` of the primary tasks at the rate

    .. math:: \frac{\partial}{\partial \lambda_t} \sum_s \pi_s F_s(\theta')
              = -\eta \sum_s \pi_s \langle \nabla F_s(\theta'), g_t \rangle

    which the products of held-out and training gradients give exactly (the released code
    takes finite differences). ``lambda`` is the softmax of logits, which take one Adam
    step on these rates, divided by their norm so that no scale of the gradients counts
    (hence Adam's epsilon of 1e-3), before they weight this step.

    Args:
        num_tasks: number of tasks ``T``.
        learning_rate: Adam's learning rate for the logits.
        primary: :math:`\pi`, ``T`` non-negative numbers, 0 for auxiliary tasks; ones by
            default.

    Returns:
        A weighting for ``update(..., held_out=H)``, task gradients ``(T, *p)`` on a
        held-out batch, at the look-ahead point (the paper) or, to first order, at the
        present one. Without it the training batch stands in, which does not measure
        generalisation. The weights add up to 1 (the paper's are free, from 0.1).

    Raises:
        ValueError: for options out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.auto_lambda(2, learning_rate=1.0)
        >>> grads, held_out = jnp.array([[1.0], [-1.0]]), jnp.array([[1.0], [2.0]])
        >>> _, state = tx.update(grads, tx.init(jnp.zeros(1)), held_out=held_out)
        >>> print(*(f"{w:.2f}" for w in state.weights))  # the first gradient helps
        0.88 0.12

    References:
        Liu et al., *Auto-Lambda: Disentangling Dynamic Task Relationships*, 2022,
        arXiv:2202.03091
    """
    check_num_tasks(num_tasks)
    given = preference_weights("primary", primary, num_tasks, 1.0)

    def direction(products: Array, weights: Array) -> Array:
        rates = jnp.asarray(given, products.dtype) @ products
        return through_softmax(_unit(rates), weights)

    return _learned(num_tasks, "auto_lambda", learning_rate, direction)


def moml(num_tasks: int, *, learning_rate: float = 1e-3) -> Weighting:
    r"""Multi-objective meta learning: MGDA on the held-out losses, over the task weights.

    As :func:`mtl_jax.auto_lambda`, but every held-out loss keeps its own derivative with
    respect to the logits; these ``T`` vectors are divided by their norms and combined at
    the min-norm point of their convex hull: no held-out loss is sacrificed for another.

    Args:
        num_tasks: number of tasks ``T``.
        learning_rate: Adam's learning rate for the logits (LibMTL: 1e-3).

    Returns:
        A weighting for ``update(..., held_out=H)``, see :func:`mtl_jax.auto_lambda`: one
        inner step, as the released code demands. The weights add up to 1.

    Raises:
        ValueError: for a negative learning rate.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.moml(2, learning_rate=1.0)
        >>> grads, held_out = jnp.array([[1.0], [-1.0]]), jnp.array([[1.0], [2.0]])
        >>> _, state = tx.update(grads, tx.init(jnp.zeros(1)), held_out=held_out)
        >>> print(*(f"{w:.2f}" for w in state.weights))
        0.88 0.12

    References:
        Ye et al., *Multi-Objective Meta Learning*, 2021, arXiv:2102.07121
    """

    def direction(products: Array, weights: Array) -> Array:
        rows = jax.vmap(lambda rates: _unit(through_softmax(_unit(rates), weights)))(
            products
        )
        shares = min_norm_point(rows @ rows.T).value
        return shares @ rows

    return _learned(num_tasks, "moml", learning_rate, direction)


def _learned(
    num_tasks: int,
    name: str,
    learning_rate: float,
    direction: Callable[[Array, Array], Array],
) -> Weighting:
    """Ascends along ``direction(products (T, T), weights (T,))`` in the logits."""
    check_num_tasks(num_tasks)
    check_range("learning_rate", learning_rate, 0)
    # Directions have length one at most: with Adam's usual epsilon the signs of entries
    # that are rounding errors would count as much as the others.
    optimizer = optax.adam(learning_rate, eps=1e-3)

    def init() -> HeldOutState:
        logits = jnp.zeros(num_tasks, float)
        return HeldOutState(logits, optimizer.init(logits))

    @full_precision
    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        products = cross_gram_of(statistics, num_tasks, name)
        weights = jax.nn.softmax(state.logits).astype(products.dtype)
        uphill = direction(products, weights).astype(state.logits.dtype)
        trained = descend(optimizer, -uphill, state.logits, state.opt_state)
        weights = jax.nn.softmax(trained[0]).astype(products.dtype)
        return weights, HeldOutState(*trained)

    return Weighting(init, update, num_tasks)


def _unit(vector: Array) -> Array:
    """Divides by the norm, through the largest entry so that squares stay in range."""
    largest = jnp.max(jnp.abs(vector))
    vector = vector / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(jnp.square(vector)))
    return vector / jnp.where(length > 0, length, 1)
