"""Gradient accumulation before the tasks are combined."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax import tree
from mtl_jax._types import (
    Array,
    ArrayTree,
    StackedTree,
    State,
    check_count,
    check_num_tasks,
)


class AccumulateState(NamedTuple):
    """State of :func:`accumulate`."""

    mean_grads: StackedTree
    """Sum of the task gradients so far, divided by ``every_k``, ``(T, *p)``."""
    mean_losses: Array
    """Likewise of the losses, ``(T,)``."""
    micro_step: Array
    """Micro-batches seen since the last update, int32 ``()``."""
    inner: State
    """State of the transformation inside."""


def accumulate(
    tx: optax.GradientTransformation,
    every_k: int,
    *,
    num_tasks: int,
    heads: tree.HeadsSpec = None,
) -> optax.GradientTransformationExtraArgs:
    """Averages the task gradients of ``k`` micro-batches, then updates once.

    ``optax.MultiSteps`` averages updates: around a whole chain it fails on the task axis,
    and after the method it averages ``k`` combinations with ``k`` different weights. Here
    the method sees the gradients and losses of the large batch.

    Args:
        tx: the whole chain, from ``(T, *p)`` to ``(*p)``, optimiser included: it only
            runs in every ``k``-th step, and the updates in between are zero.
        every_k: number of micro-batches.
        num_tasks: number of tasks ``T``.
        heads: as for :func:`mtl_jax.value_and_task_grads`, if that returns the gradients
            of task-specific parameters summed ``(1, *p)``.

    Returns:
        A transformation from ``(T, *p)`` to ``(*p)``. The average is kept in float32 or
        wider, and takes as much memory as the task gradients. ``losses=`` are averaged;
        other extra arguments reach ``tx`` as given in the ``k``-th step.

    Raises:
        ValueError: unless ``every_k`` is a Python integer >= 1.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax, optax
        >>> chain = optax.chain(mtl_jax.mgda(2), optax.sgd(1.0))
        >>> tx = mtl_jax.accumulate(chain, every_k=2, num_tasks=2)
        >>> state = tx.init(jnp.zeros(2))
        >>> for scale in (1.0, 3.0):
        ...     grads = scale * jnp.eye(2)
        ...     update, state = tx.update(grads, state)
        ...     print(update)
        [0. 0.]
        [-1. -1.]
    """
    check_num_tasks(num_tasks)
    check_count("every_k", every_k, 1)
    inside = optax.with_extra_args_support(tx)

    def init_fn(params: ArrayTree) -> AccumulateState:
        marks = tree.resolve_heads(heads, params)
        return AccumulateState(
            tree.stacked_zeros(params, num_tasks, marks),
            jnp.zeros(num_tasks, tree.accumulator_dtype(params)),
            jnp.zeros([], jnp.int32),
            inside.init(params),
        )

    def update_fn(
        updates: StackedTree,
        state: State,
        params: ArrayTree | None = None,
        *,
        losses: Array | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, State]:
        tree.check_stacked(updates, num_tasks, tree.resolve_heads(heads, updates))

        def add(old: Array, new: Array) -> Array:
            return (old + new.astype(old.dtype) / every_k).astype(old.dtype)

        mean_grads = jax.tree.map(add, state.mean_grads, updates)
        mean_losses = state.mean_losses
        if losses is not None:
            mean_losses = add(mean_losses, losses)

        def take(inner: State) -> tuple[ArrayTree, State]:
            grads = jax.tree.map(lambda x, y: x.astype(y.dtype), mean_grads, updates)
            means = None if losses is None else mean_losses.astype(losses.dtype)
            return inside.update(grads, inner, params, losses=means, **extra_args)

        shapes, _ = jax.eval_shape(take, state.inner)

        def wait(inner: State) -> tuple[ArrayTree, State]:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), inner

        due = state.micro_step == every_k - 1
        update, inner = lax.cond(due, take, wait, state.inner)
        mean_grads, mean_losses = jax.tree.map(
            lambda x: jnp.where(due, jnp.zeros_like(x), x), (mean_grads, mean_losses)
        )
        micro_step = (state.micro_step + 1) % every_k
        return update, AccumulateState(mean_grads, mean_losses, micro_step, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
