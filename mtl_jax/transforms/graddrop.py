"""GradDrop: keeps, per coordinate, only the gradients of one sign."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax._types import Array, ArrayTree, StackedTree, State, check_range
from mtl_jax.transforms._base import transform_stack


class GraddropState(NamedTuple):
    """State of :func:`graddrop`."""

    key: Array
    """Random key of the next step, typed ``()``."""


def graddrop(
    num_tasks: int, *, leak: float = 0.0, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient sign dropout: one random sign per coordinate wins.

    With :math:`P = \tfrac12 (1 + \sum_t g_t / \sum_t |g_t|)` per coordinate and one
    :math:`u \sim U(0, 1)` shared by all tasks, positive entries survive where
    :math:`P > u`, negative ones where :math:`P < u`:
    :math:`\Delta = \sum_t (\ell + (1 - \ell)\, \mathrm{keep}_t)\, g_t`. Coordinates on
    which all tasks agree pass unchanged, so task-specific parameters need no special
    treatment.

    Args:
        num_tasks: number of tasks ``T``.
        leak: :math:`\ell` in [0, 1]; 1 is the plain sum.
        seed: seed of the key in the state.

    Returns:
        A transformation from ``(T, *p)`` to ``(*p)``. Not a weighting: it works on single
        coordinates. It acts on parameter gradients, as in TorchJD; the paper and LibMTL
        act on the gradients of the shared representation, summed over the batch.

    Raises:
        ValueError: for a ``leak`` outside [0, 1]; from ``update``, for wrong shapes.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.graddrop(2)
        >>> grads = jnp.array([[1.0, 2.0], [-1.0, 3.0]])
        >>> update, _ = tx.update(grads, tx.init(jnp.zeros(2)))
        >>> print(abs(update))  # one of the two conflicting signs, and the sum
        [1. 5.]

    References:
        Chen et al., *Just Pick a Sign*, 2020, arXiv:2010.06808
    """
    check_range("leak", leak, 0, 1)

    def init(params: ArrayTree) -> GraddropState:
        del params
        return GraddropState(jax.random.key(seed))

    def update(
        updates: StackedTree, state: State, losses: Array | None
    ) -> tuple[ArrayTree, State]:
        del losses
        next_key, draw_key = jax.random.split(state.key)
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(draw_key, len(leaves))
        kept = [_drop(leaf, key, leak) for leaf, key in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(structure, kept), GraddropState(next_key)

    return transform_stack(num_tasks, update, init)


def _drop(leaf: Array, key: Array, leak: float | Array) -> Array:
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    grads = leaf.astype(dtype)
    # Division by the largest entry first: sums of extreme gradients stay in range.
    largest = jnp.abs(grads).max(axis=0)
    shares = grads / jnp.where(largest > 0, largest, 1)[None]
    total = jnp.abs(shares).sum(axis=0)
    positive = 0.5 * (1 + shares.sum(axis=0) / jnp.where(total > 0, total, 1))
    u = jax.random.uniform(key, positive.shape, dtype)
    keep = jnp.where(grads > 0, (positive > u)[None], (positive < u)[None])
    # One-sided coordinates pass even where u meets the bound (positive is 0 or 1).
    one_sided = (grads >= 0).all(axis=0) | (grads <= 0).all(axis=0)
    keep = keep | one_sided[None]
    factor = jnp.where(keep, 1, jnp.asarray(leak, dtype))
    return (factor * grads).sum(axis=0).astype(leaf.dtype)
