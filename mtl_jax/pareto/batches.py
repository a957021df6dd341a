"""Task gradients averaged over several batches, one batch's memory at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax._types import Array, ArrayTree, LossesFn, StackedTree
from mtl_jax.gradients import value_and_task_grads


def mean_task_grads(
    losses_fn: LossesFn,
    params: ArrayTree,
    batches: tuple = (),
    *,
    strategy: str = "auto",
) -> tuple[Array, StackedTree]:
    r"""Losses and task gradients, means over batches of equal size.

    .. math:: L_t = \frac1n \sum_{b=1}^n L_t(\theta, b), \qquad g_t = \nabla_\theta L_t

    The batches follow each other in a ``lax.scan``; sums are kept in float32 (float64 for
    float64 leaves), so memory does not grow with their number.

    Args:
        losses_fn: ``losses_fn(params, *args) -> losses (m,)``.
        params: parameters, leaves ``(*p)``.
        batches: **tuple** of the positional arguments after ``params``; each is a pytree
            whose leaves have a leading axis of ``n`` batches. An empty tuple means one
            call without further arguments.
        strategy: how the pull-backs run, see :func:`mtl_jax.value_and_task_grads`.

    Returns:
        ``(losses (m,), task_grads)`` with leaves ``(m, *p)`` in the parameters' dtypes.

    Raises:
        ValueError: for ``batches`` that are no tuple or have no common leading axis, and
            as :func:`mtl_jax.value_and_task_grads`.

    Examples:
        >>> def losses_fn(x, shift):
        ...     return jnp.stack([jnp.sum((x - shift) ** 2), jnp.sum(x)])
        >>> batches = (jnp.array([1.0, 3.0]),)
        >>> losses, task_grads = mean_task_grads(losses_fn, jnp.array([3.0]), batches)
        >>> print(losses, task_grads.ravel())
        [2. 3.] [2. 1.]
    """
    source = value_and_task_grads(losses_fn, strategy=strategy)
    if not isinstance(batches, tuple):
        raise ValueError(
            "batches must be a tuple of the arguments after params, each with a leading "
            f"axis of batches, got {type(batches).__name__}; wrap a single one: (batch,)"
        )
    if not batches:
        return source(params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            "all arrays in batches must share a leading axis of one or more batches, got "
            f"shapes {shapes}"
        )
    (count,) = next(iter(sizes))
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    if count == 1:
        return source(params, *first)

    def add(total: tuple, args: tuple) -> tuple[tuple, None]:
        new = source(params, *args)
        return jax.tree.map(lambda t, leaf: t + leaf.astype(t.dtype), total, new), None

    like = jax.eval_shape(source, params, *first)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)),
        like,
    )
    total, _ = lax.scan(add, zeros, batches)
    return jax.tree.map(lambda t, leaf: (t / count).astype(leaf.dtype), total, like)
