"""Nash-MTL: the Nash bargaining solution of the task gradients."""

from __future__ import annotations

import jax.numpy as jnp

from mtl_jax._types import Solution, Statistics, Weighting, check_range
from mtl_jax.solvers import nash_weights
from mtl_jax.weighting._base import from_solver, gram_of


def nash_mtl(
    num_tasks: int,
    *,
    max_norm: float | None = None,
    ridge: float | None = None,
) -> Weighting:
    r"""Nash bargaining: every task's relative improvement counts the same.

    The weights :math:`\alpha > 0` solve :math:`M \alpha = 1 / \alpha` for the Gramian
    ``M``; then :math:`\Delta = \sum_t \alpha_t g_t` maximises
    :math:`\sum_t \log \langle g_t, \Delta\rangle` over a ball, is unchanged by any
    positive rescaling of the tasks, improves every task
    (:math:`\langle g_t, \Delta \rangle = 1/\alpha_t > 0`), and has
    :math:`\|\Delta\| = \sqrt T`. Solved exactly by damped Newton steps on the cosines (the
    released code's sequential convex approximation stops early, returns equal weights
    for gradients of norm below about 0.01 and needs an unmaintained solver).

    Args:
        num_tasks: number of tasks ``T``.
        max_norm: if given, the update is scaled down to this norm when it is longer. The
            paper has no such step; the released code clips the shared gradient to 1.
        ridge: see :func:`mtl_jax.solvers.nash_weights`: lets the update fade to zero near
            Pareto-stationary points, where the bargaining problem has no solution.

    Returns:
        A weighting that needs the Gramian. Tasks with zero gradient get weight 0. To renew
        the weights only every ``k`` steps (Nash-MTL-k) the saving lies in the skipped
        backward passes, so that belongs to the source of the gradients, not here.

    Raises:
        ValueError: for a ``max_norm`` or ``ridge`` out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.nash_mtl(2)
        >>> gram = jnp.diag(jnp.array([4.0, 1.0]))
        >>> weights, _ = weighting.update(mtl_jax.Statistics(gram), weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        0.500 1.000

    References:
        Navon et al., *Multi-Task Learning as a Bargaining Game*, 2022, arXiv:2202.01017
    """
    if max_norm is not None:
        check_range("max_norm", max_norm, 0, open_low=True)
    if ridge is not None:
        check_range("ridge", ridge, 0)

    def solve(statistics: Statistics) -> Solution:
        gram = gram_of(statistics, num_tasks, "nash_mtl")
        solution = nash_weights(gram, ridge=ridge)
        if max_norm is None:
            return solution
        # Unit weights times norms keep the square in range whatever the gradients' scale.
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
        divisors = jnp.where(norms > 0, norms, 1)
        lengths = solution.value * norms
        square = lengths @ (gram / divisors[:, None] / divisors[None, :]) @ lengths
        length = jnp.sqrt(jnp.maximum(square, 0))
        factor = jnp.minimum(1, max_norm / jnp.where(length > 0, length, max_norm))
        return solution._replace(value=(factor * solution.value).astype(gram.dtype))

    return from_solver(num_tasks, solve)
