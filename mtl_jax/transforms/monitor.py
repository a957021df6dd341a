"""A transformation that changes nothing and remembers what is worth logging."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, StackedTree, State, check_num_tasks


class MonitorState(NamedTuple):
    """State of :func:`monitor`."""

    cosines: Array
    """Cosines between the task gradients of the last step, ``(T, T)``."""
    norms: Array
    """Norms of the task gradients, ``(T,)``."""
    update_cosines: Array
    """Around a method: cosines of each task gradient with the update, ``(T,)``, negative
    where the task loses; zeros otherwise."""
    update_norm: Array
    """Around a method: norm of the update, ``()``; zero otherwise."""
    inner: State
    """State of the method, with its ``weights`` if it has any."""


def monitor(
    tx: optax.GradientTransformation | None = None,
    *,
    num_tasks: int,
    heads: tree.HeadsSpec = None,
) -> optax.GradientTransformationExtraArgs:
    """Records conflicts, norms and, around a method, what its update does to each task.

    Args:
        tx: a method from ``(T, *p)`` to ``(*p)``, without the optimiser (whose updates
            point downhill); ``None`` passes the task gradients through.
        num_tasks: number of tasks ``T``.
        heads: task-specific parameters to leave out, as for :func:`mtl_jax.aggregate`.

    Returns:
        A transformation with the updates of ``tx``. ``optax.tree.get(opt_state,
        "cosines")`` reads a field of its state wherever it is in a chain, and
        ``"weights"`` the method's, if it has weights.

    Raises:
        ValueError: from ``update``, for wrong shapes.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax, optax
        >>> method = mtl_jax.monitor(mtl_jax.ls(2), num_tasks=2)
        >>> tx = optax.chain(method, optax.adam(1e-3))
        >>> grads = jnp.array([[3.0, 4.0], [0.0, -1.0]])
        >>> _, state = tx.update(grads, tx.init(jnp.zeros(2)))
        >>> print(optax.tree.get(state, "norms"), optax.tree.get(state, "weights"))
        [5. 1.] [1. 1.]
        >>> print(*(f"{c:.2f}" for c in optax.tree.get(state, "update_cosines")))
        0.99 -0.71
    """
    check_num_tasks(num_tasks)
    inside = None if tx is None else optax.with_extra_args_support(tx)

    def init_fn(params: ArrayTree) -> MonitorState:
        dtype = tree.accumulator_dtype(params)
        return MonitorState(
            jnp.zeros((num_tasks, num_tasks), dtype),
            jnp.zeros(num_tasks, dtype),
            jnp.zeros(num_tasks, dtype),
            jnp.zeros([], dtype),
            () if inside is None else inside.init(params),
        )

    def update_fn(
        updates: StackedTree,
        state: State,
        params: ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[Any, State]:
        marks = tree.resolve_heads(heads, updates)
        tree.check_stacked(updates, num_tasks, marks)
        shared = tree.shared_leaves(updates, marks)
        dtype = state.norms.dtype
        gram = tree.gram(shared)
        norms = jnp.sqrt(jnp.diagonal(gram))
        record = {
            "cosines": tree.cosines(gram).astype(dtype),
            "norms": norms.astype(dtype),
        }
        if inside is None:
            return updates, state._replace(**record)
        combined, inner = inside.update(updates, state.inner, params, **extra_args)
        one = [leaf[None] for leaf in tree.shared_leaves(combined, marks)]
        length = tree.task_norms(one)[0]
        products = tree.cross_gram(shared, one)[:, 0]
        # Two divisions, because the product of two norms may leave float32's range.
        products = products / jnp.where(norms > 0, norms, 1)
        products = products / jnp.where(length > 0, length, 1)
        return combined, state._replace(
            **record,
            update_cosines=jnp.clip(products, -1, 1).astype(dtype),
            update_norm=length.astype(dtype),
            inner=inner,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
