"""Projections of sorted numbers that the proximal operator of GrOWL consists of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax._types import Array


def pool_decreasing(values: Array) -> Array:
    """Nearest non-increasing sequence, by pooling adjacent violators.

    All violating neighbours are merged at once, round after round: the members of a
    rising run always end up in one block, so the result is that of the sequential
    algorithm. Random inputs take about ``log n`` rounds, no input more than ``n``.

    Args:
        values: ``(n,)``, floating point.

    Returns:
        ``(n,)``.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(pool_decreasing(jnp.array([3.0, 1.0, 2.0, 0.0])))
        [3.  1.5 1.5 0. ]
    """
    size = values.shape[0]

    def rising(means: Array, counts: Array) -> Array:
        later = (means[1:] > means[:-1]) & (counts[1:] > 0)
        return jnp.concatenate([jnp.zeros(1, bool), later])

    def body(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        blocks, means, counts, merge = carry
        new = jnp.cumsum(~merge) - 1

        def add(terms: Array) -> Array:
            return jax.ops.segment_sum(terms, new, size, indices_are_sorted=True)

        # Sums of a few block means round less than one long sum of the values.
        totals, counts = add(means * counts), add(counts)
        means = totals / jnp.maximum(counts, 1)
        return new[blocks], means, counts, rising(means, counts)

    counts = jnp.ones_like(values)
    start = (jnp.arange(size), values, counts, rising(values, counts))
    blocks, means, _, _ = lax.while_loop(lambda carry: carry[3].any(), body, start)
    return means[blocks]


def clip_top(values: Array, amount: Array) -> Array:
    r"""Takes ``amount`` in all off the largest of the sorted numbers.

    Returns :math:`\min(u, c)` with the level :math:`c` that solves
    :math:`\sum_i (u_i - c)_+ = \beta`; zeros if the sum is at most :math:`\beta`.

    Args:
        values: ``u``, non-increasing and not negative, ``(n,)``.
        amount: ``β >= 0``, ``()``.

    Returns:
        ``(n,)``.
    """
    ranks = jnp.arange(1, values.shape[0] + 1, dtype=values.dtype)
    levels = (jnp.cumsum(values) - amount) / ranks
    # The count of numbers above the level is the last rank whose own level is below it.
    last = jnp.maximum(jnp.sum(values > levels) - 1, 0)
    level = jnp.where(amount > 0, levels[last], values[0])
    return jnp.minimum(values, jnp.maximum(level, 0))
