"""CAGrad: the best worst-case improvement near the mean gradient."""

from __future__ import annotations

from mtl_jax._types import Solution, Statistics, Weighting, check_choice, check_range
from mtl_jax.solvers import cagrad_update_weights
from mtl_jax.weighting._base import from_solver, gram_of


def cagrad(
    num_tasks: int,
    *,
    c: float = 0.4,
    rescale: str = "none",
    reduction: str = "mean",
) -> Weighting:
    r"""Conflict-averse gradient descent: maximises the worst task's local improvement.

    .. math:: \Delta = \arg\max_\Delta \min_t \langle g_t, \Delta \rangle
              \quad \text{s.t.} \quad \|\Delta - \bar g\| \le c \|\bar g\|

    for the mean gradient :math:`\bar g`; by duality
    :math:`\Delta = \bar g + c \|\bar g\| g_w / \|g_w\|` with :math:`g_w = \sum w_t g_t` and
    ``w`` on the simplex minimising
    :math:`\langle g_w, \bar g\rangle + c \|\bar g\| \|g_w\|`, solved exactly.
    ``c = 0`` is plain averaging; for ``c >= 1`` no task ever loses, to first order. For
    the limits where :math:`g_w` or :math:`\bar g` vanishes see
    :func:`mtl_jax.solvers.cagrad_update_weights`; tasks with zero gradient do not pull.

    Args:
        num_tasks: number of tasks ``T``.
        c: radius of the trust region, ``>= 0``. 0.4 in nash-mtl's code and the paper's
            supervised experiments; LibMTL 0.5.
        rescale: ``"none"`` is the paper's Algorithm 1 (and TorchJD); ``"quadratic"``
            divides by :math:`1 + c^2`, the default of the authors' code, nash-mtl and
            LibMTL; ``"linear"`` divides by :math:`1 + c`.
        reduction: ``"mean"`` as in the paper, or ``"sum"``: ``T`` times that, as in
            nash-mtl's code.

    Returns:
        A weighting that needs the Gramian.

    Raises:
        ValueError: for a negative ``c`` or unknown choices.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.cagrad(2, c=0.4)
        >>> gram = jnp.array([[4.0, -1.0], [-1.0, 1.0]])
        >>> weights, _ = weighting.update(mtl_jax.Statistics(gram), weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        0.500 0.846

    References:
        Liu et al., *Conflict-Averse Gradient Descent for Multi-task Learning*, 2021,
        arXiv:2110.14048
    """
    check_range("c", c, 0)
    check_choice("rescale", rescale, ("none", "quadratic", "linear"))
    check_choice("reduction", reduction, ("mean", "sum"))

    def solve(statistics: Statistics) -> Solution:
        gram = gram_of(statistics, num_tasks, "cagrad")
        solution = cagrad_update_weights(gram, c)
        weights = solution.value
        if rescale == "quadratic":
            weights = weights / (1 + c**2)
        elif rescale == "linear":
            weights = weights / (1 + c)
        if reduction == "sum":
            weights = weights * num_tasks
        return solution._replace(value=weights.astype(gram.dtype))

    return from_solver(num_tasks, solve)
