"""What transformations of stacked task gradients share that are no weightings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, StackedTree, State, check_num_tasks


def no_state(params: ArrayTree) -> optax.EmptyState:
    """``init`` of a transformation that remembers nothing."""
    del params
    return optax.EmptyState()


def transform_stack(
    num_tasks: int,
    update: Callable[[StackedTree, State, Array | None], tuple[Any, State]],
    init: optax.TransformInitFn = no_state,
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation of a function of checked task gradients.

    Args:
        num_tasks: number of tasks ``T``.
        update: ``(task_grads (T, *p), state, losses) -> (updates, state)``; ``losses`` as
            given to the transformation's ``update``, or ``None``.
        init: ``params -> state``.

    Returns:
        A transformation that refuses gradients of other shapes and passes over the
        parameters and further extra arguments.
    """
    check_num_tasks(num_tasks)

    def update_fn(
        updates: StackedTree,
        state: State,
        params: ArrayTree | None = None,
        *,
        losses: Array | None = None,
        **extra_args: Any,
    ) -> tuple[Any, State]:
        del params, extra_args
        tree.check_stacked(updates, num_tasks)
        return update(updates, state, losses)

    return optax.GradientTransformationExtraArgs(init, update_fn)
