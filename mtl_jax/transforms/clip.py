"""Rescaler: clips every task gradient by its own norm."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from mtl_jax import tree
from mtl_jax._types import Array, StackedTree, State, check_range
from mtl_jax.transforms._base import transform_stack


def clip_tasks(
    max_norm: float, *, num_tasks: int
) -> optax.GradientTransformationExtraArgs:
    r"""Scales each task gradient down to a norm of at most ``max_norm``.

    :math:`g_t \leftarrow g_t \min(1, c / \|g_t\|)`, before an aggregator: no single task
    can dominate by its length, while short gradients stay short (unlike ``normalize``).
    ``optax.clip_by_global_norm`` in this place would clip all tasks by one factor; after
    the method it clips the update.

    Args:
        max_norm: ``c > 0``.
        num_tasks: number of tasks ``T``.

    Returns:
        A stateless transformation from ``(T, *p)`` to ``(T, *p)``, dtypes kept.

    Raises:
        ValueError: if ``max_norm`` is not positive; from ``update``, for wrong shapes.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax, optax
        >>> tx = optax.chain(mtl_jax.clip_tasks(1.0, num_tasks=2), mtl_jax.ls(2))
        >>> grads = jnp.array([[3.0, 0.0], [0.0, 0.5]])
        >>> print(tx.update(grads, tx.init(jnp.zeros(2)))[0])
        [1.  0.5]
    """
    check_range("max_norm", max_norm, 0, open_low=True)

    def update(
        updates: StackedTree, state: State, losses: Array | None
    ) -> tuple[StackedTree, State]:
        del losses
        norms = tree.task_norms(updates)
        scales = jnp.where(
            norms > max_norm, max_norm / jnp.where(norms > 0, norms, 1), 1
        )
        return tree.scale_tasks(scales, updates), state

    return transform_stack(num_tasks, update)
