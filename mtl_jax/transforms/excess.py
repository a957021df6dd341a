"""ExcessMTL: weights that follow estimates of the excess risks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, StackedTree, State, check_range
from mtl_jax.solvers.projection import safe_softmax
from mtl_jax.transforms._base import transform_stack


class ExcessState(NamedTuple):
    """State of :func:`excess_mtl`."""

    weights: Array
    """Task weights in force, sum ``T``, ``(T,)``."""
    squares: StackedTree
    """Sums of the squared gradients, ``(T, *p)``, at least float32."""
    first: Array
    """Excess risks of the first step, the unit, ``(T,)``; NaN before it."""


def excess_mtl(
    num_tasks: int, *, eta: float = 0.01
) -> optax.GradientTransformationExtraArgs:
    r"""Robust multi-task learning with excess risks: weight goes where most is to gain.

    The second-order estimate of what is left to gain, with Adagrad's diagonal for the
    Hessian, :math:`S_t \leftarrow S_t + g_t^2`, :math:`e_t = \sum g_t^2 / \sqrt{S_t}`,
    relative to the first step's, raises the weight of its task:
    :math:`w_t \propto w_t \exp(\eta\, e_t / e_t^0)`, :math:`\sum_t w_t = T`. A task with
    irreducible noise keeps a large loss, but not a large excess risk.

    Args:
        num_tasks: number of tasks ``T``.
        eta: step size of the weights (LibMTL: 0.01).

    Returns:
        A transformation from ``(T, *p)`` to ``(*p)``, :math:`\sum_t w_t g_t`; its state
        holds ``S``, as large as the task gradients. Coordinates whose gradient has always
        been zero count nothing (the released codes add 1e-7 to ``S``); tasks whose
        gradient was zero at the first step have the unit 1.

    Raises:
        ValueError: if ``eta`` is negative; from ``update``, for wrong shapes.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.excess_mtl(2, eta=1.0)
        >>> state = tx.init(jnp.zeros(1))
        >>> for first in (1.0, 4.0):  # the second task's gradient grows less
        ...     update, state = tx.update(jnp.array([[first], [1.0]]), state)
        >>> print(*(f"{w:.2f}" for w in state.weights))
        1.92 0.08

    References:
        He et al., *Robust Multi-Task Learning with Excess Risks*, 2024, arXiv:2402.02009
    """
    check_range("eta", eta, 0)

    def init(params: ArrayTree) -> ExcessState:
        dtype = tree.accumulator_dtype(params)
        return ExcessState(
            jnp.ones(num_tasks, dtype),
            tree.stacked_zeros(params, num_tasks),
            jnp.full(num_tasks, jnp.nan, dtype),
        )

    def update(
        updates: StackedTree, state: State, losses: Array | None
    ) -> tuple[ArrayTree, State]:
        del losses
        dtype = state.weights.dtype
        squares = jax.tree.map(
            lambda old, new: (old + jnp.square(new.astype(old.dtype))).astype(
                old.dtype
            ),
            state.squares,
            updates,
        )

        def leaf_excess(total: Array, leaf: Array) -> Array:
            root = jnp.sqrt(total)
            new = leaf.astype(total.dtype)
            # Two factors: the square alone may leave the range.
            parts = jnp.abs(new) * (jnp.abs(new) / jnp.where(root > 0, root, 1))
            return parts.sum(axis=tuple(range(1, leaf.ndim))).astype(dtype)

        parts = jax.tree.map(leaf_excess, squares, updates)
        excess = jnp.asarray(sum(jax.tree.leaves(parts)))
        first = jnp.where(jnp.isnan(state.first), excess, state.first)
        ratios = excess / jnp.where(first > 0, first, 1)
        # Logarithms: a large ratio saturates the weights instead of overflowing.
        logits = jnp.log(state.weights) + eta * ratios
        weights = num_tasks * safe_softmax(logits)
        weights = jnp.maximum(weights, jnp.finfo(dtype).tiny)
        return tree.combine(weights, updates), ExcessState(weights, squares, first)

    return transform_stack(num_tasks, update, init)
