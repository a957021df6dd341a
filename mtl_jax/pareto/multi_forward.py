"""The multi-forward regulariser: more weight on a task must mean less of its loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtl_jax._types import Array


def multi_forward_penalty(
    losses: Array | np.ndarray,
    weights: Array | np.ndarray,
    *,
    temperature: float | Array = 1.0,
) -> Array:
    r"""Penalises points of the manifold whose losses are in the wrong order.

    .. math:: R = \sum_t \log\Big( \frac{1}{W - 1} \sum_{k=1}^{W-1}
        \exp\big(\tau\, [L_t(\alpha_{(k)}) - L_t(\alpha_{(k+1)})]_+ \big) \Big)

    where :math:`\alpha_{(1)}, \alpha_{(2)}, \dots` are the ``W`` points by falling weight
    of task ``t``: each pair of neighbours should have the smaller loss where the weight is
    larger. Zero where all are in order; invariant to the order of the points and to
    constants added to a task's losses. Points of equal weight are taken in the order of
    their losses, so that they cost nothing.

    The released code has the difference's sign the other way round, which penalises the
    right order and draws all members together; here it is as the paper means it. The pairs
    are the released code's choice of the paper's graph: the chain of neighbours.

    With two tasks a right front costs nothing. With three or more it may: the loss of a
    task also depends on how the rest of the weight is shared among the others, and where
    that reverses the order of two points, the regulariser pulls the front off its optimum.

    Args:
        losses: ``(W, T)``, floating point, raw (not balanced).
        weights: task weights of the points, ``(W, T)``; not differentiated.
        temperature: :math:`\tau`.

    Returns:
        :math:`R`, scalar; 0 for one point. Its gradient in ``losses`` never exceeds
        ``temperature`` in any entry's absolute value.

    Raises:
        ValueError: for shapes other than these.

    Examples:
        >>> weights = jnp.array([[0.9], [0.5], [0.1]])
        >>> print(multi_forward_penalty(jnp.array([[1.0], [2.0], [3.0]]), weights))
        0.0
        >>> print(multi_forward_penalty(jnp.array([[3.0], [2.0], [1.0]]), weights))
        1.0

    References:
        Dimitriadis, Frossard and Fleuret, *Pareto Manifold Learning*, 2023,
        arXiv:2210.09759
    """
    losses, weights = jnp.asarray(losses), jnp.asarray(weights)
    if losses.ndim != 2 or losses.shape != weights.shape:
        raise ValueError(
            "losses and weights must both have shape (W, T), points by tasks, got "
            f"{losses.shape} and {weights.shape}"
        )
    if losses.shape[0] == 1:
        return jnp.zeros([], losses.dtype)
    order = jnp.lexsort(lax.stop_gradient((losses, -weights)), axis=0)
    chain = jnp.take_along_axis(losses, order, axis=0)
    steps = chain[:-1] - chain[1:]
    # Not jnp.maximum, which would push equal losses apart with half a gradient.
    wrong = jnp.where(steps > 0, steps, 0)
    pairs = losses.shape[0] - 1
    per_task = jax.nn.logsumexp(temperature * wrong, axis=0) - jnp.log(1.0 * pairs)
    return per_task.sum().astype(losses.dtype)
