"""Trimmed mean: drops the extreme entries of every coordinate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mtl_jax._types import Array, ArrayTree, StackedTree, State, check_num_tasks
from mtl_jax.transforms._base import transform_stack


def trimmed_mean(
    num_tasks: int, *, trim: int | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Averages each coordinate without its ``trim`` smallest and ``trim`` largest entries.

    Robust against ``trim`` arbitrary task gradients; ``trim = (T - 1) // 2`` with odd
    ``T`` is the median.

    Args:
        num_tasks: number of tasks ``T``.
        trim: at most ``(T - 1) / 2``; by default 1 from three tasks on, else 0.

    Returns:
        A stateless transformation from ``(T, *p)`` to ``(*p)``. Not a weighting: it works
        on single coordinates.

    Raises:
        ValueError: unless ``0 <= 2 trim < T``; from ``update``, for wrong shapes.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.trimmed_mean(4)
        >>> grads = jnp.array([[1.0, 9.0], [2.0, -9.0], [3.0, 1.0], [400.0, 2.0]])
        >>> print(tx.update(grads, tx.init(jnp.zeros(2)))[0])
        [2.5 1.5]

    References:
        Yin et al., *Byzantine-Robust Distributed Learning*, 2018, arXiv:1803.01498
    """
    check_num_tasks(num_tasks)
    cut = (1 if num_tasks >= 3 else 0) if trim is None else trim
    if (
        isinstance(cut, bool)
        or not isinstance(cut, int)
        or not 0 <= 2 * cut < num_tasks
    ):
        raise ValueError(
            f"trim must be a Python integer from 0 to {(num_tasks - 1) // 2} for "
            f"{num_tasks} tasks, got {trim!r}"
        )

    def update(
        updates: StackedTree, state: State, losses: Array | None
    ) -> tuple[ArrayTree, State]:
        del losses

        def leaf_mean(leaf: Array) -> Array:
            wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            kept = jnp.sort(wide, axis=0)[cut : num_tasks - cut]
            return kept.mean(axis=0).astype(leaf.dtype)

        return jax.tree.map(leaf_mean, updates), state

    return transform_stack(num_tasks, update)
