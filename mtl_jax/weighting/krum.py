"""Krum: the task gradients nearest to their neighbours."""

from __future__ import annotations

import jax.numpy as jnp

from mtl_jax._types import Array, Statistics, Weighting, check_count, check_num_tasks
from mtl_jax.weighting._base import gram_of, stateless


def krum(num_tasks: int, *, num_faulty: int = 0, num_selected: int = 1) -> Weighting:
    r"""Byzantine-tolerant selection: averages the gradients with the closest neighbours.

    The score of task ``t`` is the sum of its ``T - f - 2`` smallest squared distances
    :math:`\|g_t - g_s\|^2 = M_{tt} + M_{ss} - 2 M_{ts}` to other tasks; the update is the
    mean of the ``num_selected`` gradients with the lowest scores.

    Args:
        num_tasks: number of tasks ``T``.
        num_faulty: ``f``, how many gradients may be arbitrary; needs ``T >= f + 3``
            unless it is 0.
        num_selected: how many gradients are averaged; more than one is Multi-Krum.

    Returns:
        A weighting that needs the Gramian; the weights add up to 1. Tasks with equal
        scores share what is left for them (the released codes take the first), so one or
        two tasks give the mean. Distances are squared as in the paper (TorchJD: not).

    Raises:
        ValueError: for numbers out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.krum(4, num_faulty=1)
        >>> grads = jnp.array([[1.0], [1.25], [1.125], [90.0]])
        >>> print(tx.update(grads, tx.init(jnp.zeros(1)))[0])
        [1.125]

    References:
        Blanchard et al., *Machine Learning with Adversaries: Byzantine Tolerant Gradient
        Descent*, 2017, arXiv:1703.02757
    """
    check_num_tasks(num_tasks)
    check_count("num_faulty", num_faulty, 0)
    check_count("num_selected", num_selected, 1)
    if num_selected > num_tasks or (num_faulty and num_tasks < num_faulty + 3):
        raise ValueError(
            f"krum with num_faulty={num_faulty}, num_selected={num_selected} needs at "
            f"least {max(num_selected, num_faulty + 3)} tasks, got {num_tasks}"
        )
    neighbours = max(num_tasks - num_faulty - 2, 0)

    def weights_of(statistics: Statistics) -> Array:
        gram = gram_of(statistics, num_tasks, "krum")
        # Room for the sums: squares of norms near 1e19 are at the end of float32's range.
        gram = gram / (4 * num_tasks)
        squares = jnp.diagonal(gram)
        sums = squares[:, None] + squares[None, :]
        noise = 8 * float(jnp.finfo(gram.dtype).eps) * sums
        distances = sums - 2 * gram
        distances = jnp.where(distances > noise, distances, 0)
        others = jnp.where(jnp.eye(num_tasks, dtype=bool), jnp.inf, distances)
        scores = jnp.sort(others, axis=1)[:, :neighbours].sum(axis=1)
        last = jnp.sort(scores)[num_selected - 1]
        slack = 8 * float(jnp.finfo(gram.dtype).eps) * last
        better, equal = scores < last - slack, jnp.abs(scores - last) <= slack
        share = (num_selected - better.sum()) / jnp.maximum(equal.sum(), 1)
        return (better + equal * share).astype(gram.dtype) / num_selected

    return stateless(num_tasks, weights_of)
