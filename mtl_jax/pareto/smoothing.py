"""Moving averages of the task gradients and their weights along a trace."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, StackedTree
from mtl_jax.solvers import vectors


class Smoothed(NamedTuple):
    """Averages so far; ``None`` where nothing is smoothed."""

    smoothed_weights: Array | None
    """``(m,)``."""
    smoothed_grads: StackedTree | None
    """Leaves ``(m, *p)``."""
    num_smoothed: Array
    """How many gradients they hold, int32 ``()``."""


def init_smoothed(
    momentum: float | Array, num_tasks: int, params: ArrayTree
) -> Smoothed:
    """Returns the averages before the first step, which become what that step brings."""
    count = jnp.zeros([], jnp.int32)
    if _is_zero(momentum):
        return Smoothed(None, None, count)
    weights = jnp.zeros(num_tasks, tree.accumulator_dtype(params))
    stacks = jax.tree.map(
        lambda leaf: jnp.zeros((num_tasks, *jnp.shape(leaf)), jnp.result_type(leaf)),
        params,
    )
    return Smoothed(weights, stacks, count)


def smooth(
    momentum: float | Array, average: Smoothed, weights: Array, task_grads: StackedTree
) -> tuple[Smoothed, Array, StackedTree]:
    r"""Moves the averages, :math:`b \leftarrow \mu b + (1 - \mu)\,\mathrm{new}`.

    The first gradients replace them, so that nothing is drawn towards zero; gradients that
    are not finite leave them as they are.

    Args:
        momentum: :math:`\mu` in [0, 1); the number 0 stores and changes nothing.
        average: from :func:`init_smoothed` or the last call.
        weights: new weights, ``(m,)``.
        task_grads: new gradients, leaves ``(m, *p)``.

    Returns:
        The new averages, and the weights and gradients to use.
    """
    if _is_zero(momentum):
        return average, weights, task_grads
    usable = tree.finite_tasks(task_grads).all()
    kept = jnp.where(average.num_smoothed == 0, 0, momentum)

    def move(old: Array, new: Array) -> Array:
        dtype = jnp.promote_types(old.dtype, jnp.float32)
        mixed = kept.astype(dtype) * old.astype(dtype) + (1 - kept) * new.astype(dtype)
        return mixed.astype(old.dtype)

    old = (average.smoothed_weights, average.smoothed_grads)
    moved = jax.tree.map(move, old, (weights, task_grads))
    new_weights, new_grads = vectors.select(usable, moved, old)
    count = average.num_smoothed + usable.astype(jnp.int32)
    return Smoothed(new_weights, new_grads, count), new_weights, new_grads


def _is_zero(momentum: Any) -> bool:
    return isinstance(momentum, int | float) and momentum == 0
