"""UPGrad: the sum of every task gradient's projection on the dual cone."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from mtl_jax._types import Array, Solution, Statistics, Weighting, check_num_tasks
from mtl_jax.solvers import dual_cone_weights
from mtl_jax.weighting._base import from_solver, gram_of, static_weights


def upgrad(
    num_tasks: int, *, preference: Sequence[float] | Array | None = None
) -> Weighting:
    r"""Unconflicting projection of gradients, the aggregator of Jacobian descent.

    Every :math:`\pi_t g_t` is projected on the dual cone of the task gradients,
    :math:`\{u : \langle g_s, u \rangle \ge 0\ \forall s\}`, and the projections are added;
    the update conflicts with no task, and equals :math:`\sum \pi_t g_t` when no two
    tasks conflict. On the Gramian ``M``: :math:`w = \sum_t v_t`,
    :math:`v_t = \arg\min_{v \ge \pi_t e_t} v^\top M v`.

    Args:
        num_tasks: number of tasks ``T``.
        preference: :math:`\pi`, ``T`` non-negative numbers; ``1/T`` each by default.

    Returns:
        A weighting that needs the Gramian. The projections are exact (TorchJD and LibMTL
        add 1e-4 to the diagonal of the trace-normalised Gramian, which bends the answer).

    Raises:
        ValueError: for a wrong number of preferences.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.upgrad(2)
        >>> gram = jnp.array([[4.0, -1.0], [-1.0, 1.0]])
        >>> weights, _ = weighting.update(mtl_jax.Statistics(gram), weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        0.625 1.000

    References:
        Quinton & Rey, *Jacobian Descent for Multi-Objective Optimization*, 2024,
        arXiv:2406.16232
    """
    check_num_tasks(num_tasks)
    given = static_weights("preference", preference, num_tasks, 1.0 / num_tasks)

    def solve(statistics: Statistics) -> Solution:
        gram = gram_of(statistics, num_tasks, "upgrad")
        solution = dual_cone_weights(gram, jnp.diag(jnp.asarray(given, gram.dtype)))
        return solution._replace(value=solution.value.sum(axis=0))

    return from_solver(num_tasks, solve)
