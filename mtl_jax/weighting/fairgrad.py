"""FairGrad: alpha-fair shares of progress between the tasks."""

from __future__ import annotations

from mtl_jax._types import Solution, Statistics, Weighting, check_range
from mtl_jax.solvers import fair_weights
from mtl_jax.weighting._base import from_solver, gram_of


def fairgrad(num_tasks: int, *, alpha: float = 1.0) -> Weighting:
    r"""Fair resource allocation: maximises the alpha-fair utility of the tasks' progress.

    The weights ``w > 0`` solve :math:`M w = w^{-1/\alpha}` for the Gramian ``M``, so that
    :math:`\Delta = \sum_t w_t g_t` maximises
    :math:`\sum_t \langle g_t, \Delta \rangle^{1-\alpha} / (1 - \alpha)` over a ball, and
    improves every task: :math:`\langle g_t, \Delta\rangle = w_t^{-1/\alpha} > 0`.

    Args:
        num_tasks: number of tasks ``T``.
        alpha: ``> 0``. 1, LibMTL's default, is proportional fairness, the same as
            :func:`mtl_jax.nash_mtl`; towards 0 the plain sum; large values give max-min
            fairness, the direction of the min-norm point.

    Returns:
        A weighting that needs the Gramian; see :func:`mtl_jax.solvers.fair_weights` for
        zero gradients and Pareto-stationary points. LibMTL calls SciPy on the host with a
        start of 1/T, which fails quietly on badly scaled gradients.

    Raises:
        ValueError: if ``alpha`` is not positive.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.fairgrad(2, alpha=0.5)
        >>> gram = jnp.diag(jnp.array([1.0, 8.0]))
        >>> weights, _ = weighting.update(mtl_jax.Statistics(gram), weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        1.000 0.500

    References:
        Ban & Ji, *Fair Resource Allocation in Multi-Task Learning*, 2024,
        arXiv:2402.15638
    """
    check_range("alpha", alpha, 0, open_low=True)

    def solve(statistics: Statistics) -> Solution:
        gram = gram_of(statistics, num_tasks, "fairgrad")
        solution = fair_weights(gram, alpha)
        return solution._replace(value=solution.value.astype(gram.dtype))

    return from_solver(num_tasks, solve)
