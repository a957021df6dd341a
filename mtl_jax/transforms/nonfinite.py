"""Leaving out tasks whose loss or gradient is not finite, with static shapes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from mtl_jax import tree
from mtl_jax._types import Array, Statistics
from mtl_jax.solvers.scaling import full_precision

POLICIES = ("propagate", "skip_task", "skip_step")


class GoodTasks(NamedTuple):
    """Which tasks are usable, and statistics in which the others do no harm."""

    mask: Array
    """Whether the task's loss and gradient are finite, bool ``(T,)``."""
    spread: Array
    """``(T, T)``: row ``t`` says what task ``t`` stands for: itself, or the mean of the
    good tasks when it is bad."""
    gram: Array
    """Gramian ``(T, T)`` after ``spread``."""
    losses: Array | None
    """Losses with the bad tasks' replaced by their last finite ones, ``(T,)``."""
    last_losses: Array
    """The last finite losses, this step's included, ``(T,)``."""
    cross_gram: Array | None = None
    """Products of other batches' gradients after ``spread``, ``(T, T)``."""

    def statistics(self, revisited_losses: Array | None = None) -> Statistics:
        """What the weighting gets to see."""
        return Statistics(self.gram, self.losses, self.cross_gram, revisited_losses)

    def fold(self, weights: Array) -> Array:
        """Gives the bad tasks' weights to the tasks that stood in for them."""
        return full_precision(jnp.matmul)(weights, self.spread.astype(weights.dtype))


@full_precision
def good_tasks(
    gram: Array,
    losses: Array | None,
    last_losses: Array,
    heads: list[Array],
    cross_gram: Array | None = None,
) -> GoodTasks:
    """Finds the tasks with finite loss and gradient.

    A bad task is replaced by the mean of the good ones rather than by zero: a zero
    gradient would stop MGDA, while the mean adds nothing to the convex hull and leaves
    the mean gradient alone.

    Args:
        gram: Gramian of the shared leaves, ``(T, T)``.
        losses: ``(T,)``, or ``None``.
        last_losses: substitutes for non-finite losses, ``(T,)``.
        heads: leaves ``(T, *p)`` outside the Gramian, checked as well; leaves
            ``(1, *p)`` cannot tell the tasks apart and are not.
        cross_gram: ``(T, T)``, or ``None``; a task must be finite in those batches too.
    """
    num_tasks = gram.shape[0]
    mask = jnp.isfinite(jnp.diagonal(gram))
    if cross_gram is not None:
        mask = mask & jnp.isfinite(jnp.diagonal(cross_gram))
    stacked = [leaf for leaf in heads if leaf.shape[0] == num_tasks]
    if stacked:
        mask = mask & tree.finite_tasks(stacked)
    if losses is not None:
        finite = jnp.isfinite(losses)
        mask = mask & finite
        last_losses = jnp.where(finite, losses.astype(last_losses.dtype), last_losses)
        losses = jnp.where(finite, losses, last_losses.astype(losses.dtype))
    share = mask.astype(gram.dtype) / jnp.maximum(mask.sum(), 1)
    eye = jnp.eye(num_tasks, dtype=gram.dtype)
    spread = jnp.where(mask[:, None], eye, share[None, :])
    usable = mask[:, None] & mask[None, :]
    # Norms of 1e15 square to 1e30: still in range after the two averages below.
    clean = spread @ jnp.where(usable, gram, 0) @ spread.T
    if cross_gram is not None:
        share = spread.astype(cross_gram.dtype)
        cross_gram = share @ jnp.where(usable, cross_gram, 0) @ share.T
    return GoodTasks(mask, spread, clean, losses, last_losses, cross_gram)
