"""DualProj: one preferred combination, projected on the dual cone."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from mtl_jax._types import Array, Solution, Statistics, Weighting, check_num_tasks
from mtl_jax.solvers import dual_cone_weights
from mtl_jax.weighting._base import from_solver, gram_of, preference_weights


def dualproj(
    num_tasks: int, *, preference: Sequence[float] | Array | None = None
) -> Weighting:
    r"""The update nearest to a preferred one that conflicts with no task.

    Projects :math:`\sum_t \pi_t g_t` on the dual cone
    :math:`\{u : \langle g_s, u \rangle \ge 0\ \forall s\}`; on the Gramian ``M``:
    :math:`w = \arg\min_{v \ge \pi} v^\top M v`. (:func:`mtl_jax.upgrad` projects every
    gradient by itself.)

    Args:
        num_tasks: number of tasks ``T``.
        preference: :math:`\pi`, ``T`` non-negative numbers, not all zero; ``1/T`` each by
            default. With one task preferred and the others as constraints this is
            gradient episodic memory.

    Returns:
        A weighting that needs the Gramian. The projection is exact (TorchJD adds 1e-4 to
        the diagonal of the trace-normalised Gramian, which bends the answer).

    Raises:
        ValueError: for other preferences.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.dualproj(2, preference=(0.0, 1.0))
        >>> grads = jnp.array([[1.0, 1.0], [-2.0, 0.0]])
        >>> update, _ = tx.update(grads, tx.init(jnp.zeros(2)))
        >>> print(*(f"{x:.2f}" for x in update))
        -1.00 1.00

    References:
        Lopez-Paz & Ranzato, *Gradient Episodic Memory for Continual Learning*, 2017,
        arXiv:1706.08840
    """
    check_num_tasks(num_tasks)
    given = preference_weights("preference", preference, num_tasks, 1.0 / num_tasks)

    def solve(statistics: Statistics) -> Solution:
        gram = gram_of(statistics, num_tasks, "dualproj")
        return dual_cone_weights(gram, jnp.asarray(given, gram.dtype))

    return from_solver(num_tasks, solve)
