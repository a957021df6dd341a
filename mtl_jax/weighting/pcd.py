"""PCD: one primary task, and guaranteed progress of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_num_tasks,
    check_range,
)
from mtl_jax.solvers.cone import least_distance
from mtl_jax.solvers.scaling import full_precision, scale_gram
from mtl_jax.weighting._base import gram_of


class PcdState(NamedTuple):
    """State of :func:`pcd`."""

    mean_squares: Array
    """Running average of the squared gradient norms, not corrected, float ``(T,)``."""
    correction: Array
    """:math:`\\beta^k` after ``k`` steps, float ``()``."""


def pcd(
    num_tasks: int,
    *,
    tau: float | Sequence[float] = 0.02,
    beta: float = 0.999,
    primary: int = 0,
) -> Weighting:
    r"""Priority-constrained descent: the primary gradient, and a share for every other.

    With :math:`\tilde g_t = g_t / \sqrt{v_t}` for the bias-corrected running averages
    ``v`` of the squared norms, and ``p`` the primary task,

    .. math:: \tilde d = \arg\min_d \|d - \tilde g_p\|^2 \quad \text{s.t.} \quad
              \langle \tilde g_j, d \rangle \ge \tau_j \|\tilde g_j\|^2
              \quad \forall j \ne p

    and the update is :math:`\tilde d` with the length of :math:`g_p`.

    Args:
        num_tasks: number of tasks ``T``.
        tau: share in [0, 1] of the progress that a step along its own gradient would
            give, one number or one for each of the ``T - 1`` secondary tasks.
        beta: decay of the running averages.
        primary: index of the primary task.

    Returns:
        A weighting that needs the Gramian. Where the constraints contradict each other
        the update is :math:`g_p`; where :math:`g_p` or :math:`\tilde d` vanishes it is
        zero. The averages get no 1e-8 (released codes), so rescaling a secondary loss for
        good changes nothing at all.

    Raises:
        ValueError: for options out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.pcd(2, tau=0.0)
        >>> grads = jnp.array([[3.0, 4.0], [-4.0, -2.0]])
        >>> update, _ = tx.update(grads, tx.init(jnp.zeros(2)))
        >>> print(*(f"{x:.2f}" for x in update))
        -2.24 4.47

    References:
        Varam et al., *Not All Objectives Are Born Equal: Priority-Constrained Descent for
        Hierarchical Multi-Objective Optimization*, 2026, arXiv:2606.29521
    """
    check_num_tasks(num_tasks)
    check_range("beta", beta, 0, 1, open_high=True)
    if isinstance(primary, bool) or primary not in range(num_tasks):
        raise ValueError(
            f"primary must be the index of a task, 0 to {num_tasks - 1}, got {primary!r}"
        )
    rest = np.array([t for t in range(num_tasks) if t != primary], int)
    shares = tau if isinstance(tau, Sequence) else [tau] * len(rest)
    for share in shares:
        check_range("tau", share, 0, 1)
    if len(shares) != len(rest):
        raise ValueError(
            f"tau must be one number or {len(rest)}, one for each task but the primary, "
            f"got {len(shares)}"
        )

    @full_precision
    def weights_of(gram: Array, mean_squares: Array) -> Array:
        scaled, dtype = scale_gram(gram), gram.dtype
        averages = jnp.sqrt(mean_squares.astype(dtype))
        lengths = scaled.norms / jnp.where(averages > 0, averages, 1)
        among = scaled.cosines[rest][:, rest]
        among = jnp.where(np.eye(len(rest), dtype=bool), 1, among)
        # Bounds on unit gradients' products with what is added to the primary one.
        asked = jnp.stack([jnp.asarray(s, dtype) for s in shares]) * lengths[rest]
        lower = asked - scaled.cosines[rest, primary] * lengths[primary]
        nearest = least_distance(among, jnp.where(scaled.nonzero[rest], lower, 0))
        x = jnp.where(nearest.ok, nearest.value, 0)
        z = (
            jnp.zeros(num_tasks, dtype)
            .at[rest]
            .set(x)
            .at[primary]
            .set(lengths[primary])
        )
        square = z @ (scaled.cosines @ z)
        floor = 10 * float(jnp.finfo(dtype).eps) * jnp.square(jnp.sum(z))
        alive = scaled.nonzero[primary] & (square > floor)
        factor = scaled.norms[primary] / jnp.sqrt(jnp.where(alive, square, 1))
        weights = z / jnp.where(scaled.nonzero, scaled.norms, 1) * factor
        return jnp.where(alive & scaled.finite, weights, 0)

    def init() -> PcdState:
        return PcdState(jnp.zeros(num_tasks, float), jnp.ones([], float))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        gram = gram_of(statistics, num_tasks, "pcd")
        squares = jnp.diagonal(gram).astype(state.mean_squares.dtype)
        squares = jnp.where(jnp.isfinite(gram).all(), squares, state.mean_squares)
        averages = beta * state.mean_squares + (1 - beta) * squares
        correction = beta * state.correction
        if not len(rest):
            return jnp.ones(1, gram.dtype), PcdState(averages, correction)
        weights = weights_of(gram, averages / (1 - correction))
        return weights, PcdState(averages, correction)

    return Weighting(init, update, num_tasks)
