"""MGDA: the min-norm point of the convex hull of the task gradients."""

from __future__ import annotations

import jax.numpy as jnp

from mtl_jax._types import Array, Solution, Statistics, Weighting, check_choice
from mtl_jax.solvers import min_norm_point
from mtl_jax.weighting._base import from_solver, gram_of, losses_of

NORMALIZATIONS = ("none", "l2", "loss", "loss+")


def normalization_scales(kind: str, norms: Array | None, losses: Array | None) -> Array:
    """Returns the divisors :math:`n_t` of MGDA's gradient normalisation, ``(T,)``.

    ``"l2"``: the gradient norm; ``"loss"``: the loss; ``"loss+"``: their product. A
    divisor that is not positive and finite is replaced by 1.
    """
    if kind == "l2":
        scales = norms
    elif kind == "loss":
        scales = losses
    else:
        scales = None if norms is None or losses is None else norms * losses
    assert scales is not None
    return jnp.where((scales > 0) & jnp.isfinite(scales), scales, 1)


def mgda(
    num_tasks: int,
    *,
    normalization: str = "none",
    weights_on: str = "raw",
    solver: str = "auto",
) -> Weighting:
    r"""Multiple-gradient descent: steps along the min-norm convex combination.

    .. math:: w = \arg\min_{w \in \Delta} \Big\| \sum_t w_t g_t \Big\|^2

    The update is zero exactly at Pareto-stationary points, and everywhere else a
    descent direction for all tasks. The problem is solved exactly (the released codes
    clip two-task weights to [0.001, 0.999] and their general solver may stop early or
    not at all). A task whose gradient is zero takes all the weight: the point is
    Pareto stationary.

    Args:
        num_tasks: number of tasks ``T``.
        normalization: ``"none"`` (the paper), or the released code's ``"l2"``, ``"loss"``,
            ``"loss+"``: the weights solve the problem of the gradients divided by their
            norms, losses, or both.
        weights_on: which gradients the weights multiply after a normalisation: ``"raw"``
            (Sener & Koltun's code) or ``"normalized"`` (LibMTL). With ``"raw"`` the update
            is no longer guaranteed to descend for every task.
        solver: of the min-norm problem, see :func:`mtl_jax.solvers.min_norm_point`.

    Returns:
        A weighting that needs the Gramian (and the losses for ``"loss"``, ``"loss+"``);
        the weights add up to 1 (nash-mtl's code multiplies them by ``T``).

    Raises:
        ValueError: for unknown choices.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.mgda(2)
        >>> gram = jnp.array([[4.0, -1.0], [-1.0, 1.0]])
        >>> weights, _ = weighting.update(mtl_jax.Statistics(gram), weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        0.286 0.714

    References:
        Sener & Koltun, *Multi-Task Learning as Multi-Objective Optimization*, 2018,
        arXiv:1810.04650; Désidéri, *Multiple-gradient descent algorithm*, 2012
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("weights_on", weights_on, ("raw", "normalized"))
    min_norm_point(jnp.eye(1), solver=solver)  # names an unknown solver at construction

    def solve(statistics: Statistics) -> Solution:
        gram = gram_of(statistics, num_tasks, "mgda")
        if normalization == "none":
            return min_norm_point(gram, solver=solver)
        losses = None
        if normalization != "l2":
            method = f"mgda(normalization={normalization!r})"
            losses = losses_of(statistics, num_tasks, method).astype(gram.dtype)
        norms = jnp.sqrt(jnp.diagonal(gram))
        scales = normalization_scales(normalization, norms, losses)
        # Two divisions: the product of two scales may leave float32's range.
        normalized = gram / scales[:, None] / scales[None, :]
        solution = min_norm_point(normalized, solver=solver)
        if weights_on == "raw":
            return solution
        return solution._replace(value=solution.value / scales)

    return from_solver(num_tasks, solve)
